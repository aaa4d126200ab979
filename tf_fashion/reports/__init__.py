"""Tables, curves, picture sheets and the HTML report. Everything takes plain data: dictionaries, numbers and paths."""
