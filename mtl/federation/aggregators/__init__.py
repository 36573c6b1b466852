"""How the clients' updates become one direction: `contract` and a file for each way."""
