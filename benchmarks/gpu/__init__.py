"""The first measurements on a GPU; `make gpu` runs them all."""
