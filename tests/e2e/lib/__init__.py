"""The harness of the end-to-end tests; see ../README.md."""
