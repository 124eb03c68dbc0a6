"""Cards: README.md of a model folder and of a data folder, in the Hub's form."""
