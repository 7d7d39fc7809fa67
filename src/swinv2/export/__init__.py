"""Models in the formats of other runtimes: `exporting.export_model` writes a checked folder."""
