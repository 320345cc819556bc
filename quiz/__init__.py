"""The quiz application: tiles, questions, storage, pages and the statistics of a reader study."""
