"""Floor 7: the console, the door of people: pages that are whole on the server."""
