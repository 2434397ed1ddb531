"""The only code that opens sockets.

client.py        a URL -> its bytes, or the Reason why not: redirects, deadlines, limits, retries
consent.py       what a site lets us take, by its robots.txt and the like and by its headers
budget.py        what each host bears from all workers of a run, and whose turn it is
share.py         a worker's part of that: who waits, what may begin     news.py  what the two tell each other
outage.py        whether names are found at all     sites.py  site files, once in a run     retry_after.py
connection.py    one HTTP connection, within bounds while the server speaks
placeholders.py  pictures that say that there is none
file.py          the addresses of one big published file -> that file, whole, over any interruption
url.py           text of a row or of a redirect -> the URL that is asked
address.py       which addresses may be connected to, and the connector that keeps to it
probe.py         what `pmd doctor` asks of names, hosts and certificates
img2dataset_guard.py   runs beside img2dataset, and holds it to the same addresses
"""
