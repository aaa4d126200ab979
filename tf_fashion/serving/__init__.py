"""What leaves the house: SavedModels with complete signatures."""
