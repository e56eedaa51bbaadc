"""Web page of a model that classifies in the browser, as a folder for any static host."""
