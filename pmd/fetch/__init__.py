"""The only code that opens sockets.

client.py    a URL -> its bytes, or the Reason why not: redirects, deadlines, limits, retries
file.py      the addresses of one big published file -> that file, whole and checked, over any interruption
url.py       text of a row or of a redirect -> the URL that is asked
address.py   which addresses may be connected to, and the connector that keeps to it
"""
