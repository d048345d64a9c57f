"""A page that enhances speech in the visitor's own browser: `finallyse page`.

One HTML file that contains everything: the network as an ONNX graph, ONNX Runtime Web (`onnxruntime/`, see VERSION.md
there), styles and scripts. So it works wherever it is opened: from a web server, from a disk, from an e-mail. It loads
nothing, and its Content-Security-Policy forbids that it could.

`signal.js` has windows, resampling and files as the rest of this package does them, `worker.js` runs the network,
`app.js` is the page; the player and the colours are those of the report.
"""
