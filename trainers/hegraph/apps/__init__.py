"""Pages and servers: teach a model, try it, serve it over HTTP, and report on runs.

Comes in: a folder of images, a trained model or records of runs. Goes out: pages for a browser and answers to HTTP
requests. Read `teach/session.py` for a page and `serve/app.py` for the server.
"""
