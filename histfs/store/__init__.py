"""The store: reading and writing a repository. Synchronous; knows neither trio nor FUSE."""
