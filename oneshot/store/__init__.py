"""The trial store: the record of every training, and who may write it."""
