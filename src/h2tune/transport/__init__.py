"""How bytes travel between the server and its clients."""
