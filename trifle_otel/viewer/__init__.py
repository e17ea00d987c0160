"""The web viewer: pages to find executions and to read them, as an ASGI application. Read-only.

`app.make_app` makes it, `trifle-otel ui` runs it. Pages are made by the server and work without JavaScript; they load
nothing from elsewhere, and nothing of what was recorded ever runs in them.
"""
