"""From scores to numbers (`scores`), and from scores of pairs of faces to accuracies and curves (`verification`)."""
