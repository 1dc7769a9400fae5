"""The routes table of the Data Acquisition Service. ``*`` marks arguments that may come as double base64.

``POST /experimentsByName/{experimentName*}/startDaq/{dataDirectory*}``, ``taskInfo*`` (object): daqInfo

``POST /experimentsByName/{experimentName*}/stopDaq/{dataDirectory*}``: daqInfo

``POST /experimentsByName/{experimentName*}/upload/{dataDirectory*}``, ``taskInfo*`` (object): uploadInfo

``GET /daqs``, ``experimentName*``, ``status``: list of daqInfo, newest last

``GET /daqs/{id}``, ``waitTime`` (seconds, at most 30): daqInfo

``POST /daqs/{id}/stop``: daqInfo

``DELETE /daqs/{id}`` (clear): the last daqInfo

``GET /uploads``, ``GET /uploads/{id}``, ``POST /uploads/{id}/stop``, ``DELETE /uploads/{id}``: the same for uploads

``GET /uploadRecords``, ``queryDict*`` (object), ``skip``, ``limit``: list of uploadInfo, newest last

``GET /daqs/{id}/files``, ``GET /uploads/{id}/files``, ``state``, ``skip``, ``limit``: list of ledger rows

``POST /daqs/{id}/retry``, ``POST /uploads/{id}/retry``: ``{"count": n}``, failed files made ready again

``GET /processingPlugins``: list of ``{name, description}``

With ``waitTime`` an info call answers when the record changed status or the time has passed, whichever is first.
"""
