"""Answers requests for images over HTTP.

In: a model's name and settings. Out: a process, or several, that answer until they are told to stop. `app` has the
endpoints, `service` the way of a request, `batching` puts images of several requests into a batch, `server` speaks
HTTP. FastAPI and uvicorn do the rest; `models` asks `swinv2.predict` and `swinv2.dense` for answers.
"""
