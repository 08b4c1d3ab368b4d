"""HTTP: routes, deadlines, limits, signals, logs and the page.

server              a server's life: listen, start, answer, drain, end
sockets/            connections, with deadlines and limits, and their bytes
app                 which path is answered by what: inference, documents, page/
gate, guard         what every request passes, and what stands around every route
express             which lone requests go past the application
exchange, fields    a request and its answer, and what their headers say; refusal: errors
body, gathering     bodies, read and put together; coding: decompressed
watch, watchdog     clients that go, and runs that hang
memory              kept, and on huge pages
"""
