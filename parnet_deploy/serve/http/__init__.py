"""HTTP: routes, deadlines, limits, signals, logs and the page.

server              a server's life; hearing_out: its last connections; listening: its sockets
app                 which path is answered by what: inference, documents, page
gate, guard         what every request passes, and what stands around every route
connection          uvicorn's, with deadlines and limits; reading, parsing, transport: its bytes
express             which lone requests go past the application; express_connection: where
exchange, fields    a request and its answer, and what their headers say; refusal: errors
body, gathering     bodies, read and put together; coding: decompressed
one_piece           an answer in one write
watch, watchdog     clients that go, and runs that hang
memory              kept, and on huge pages
"""
