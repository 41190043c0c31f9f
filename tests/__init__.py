"""The tests are a package, so that a worker can import a handler's module by one clear name."""
