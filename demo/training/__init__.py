"""How the demo models are made: data, autoencoder, networks, judge. Nothing here is used at run time."""
