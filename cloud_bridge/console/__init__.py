"""The console: web pages, HTTP API and metrics of the bridge, for people and programs that only look."""
