"""histfs: your backups, as a folder of folders by time."""

__version__ = "0.1.0"
