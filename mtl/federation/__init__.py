"""One round: broadcast, local training, aggregation (`round`), and the parts that it is made of."""
