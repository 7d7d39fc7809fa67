"""A web page on which one shows images to a model: the command `swinv2 page`.

In: a model's name. Out: a page. `model` computes what is shown of an image, `figures` draws it, `layout` is the page
itself. Only `layout` and `server` need Gradio.
"""
