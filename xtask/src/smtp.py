"""An SMTP server that keeps what it takes: each mail a file, whole before it has its name."""

import json
import os
import ssl
import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult


def said(word):
    with open(os.path.join(order["mails"], "log"), "a") as log:
        log.write(word + "\n")


class Mails:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in order["refused"]:
            return f"550 5.1.1 <{address}>: no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        directory = order["mails"]
        number = len([name for name in os.listdir(directory) if name.endswith(".eml")])
        path = os.path.join(directory, f"{number:06}.eml")
        head = "".join(f"X-Rcpt: {address}\n" for address in envelope.rcpt_tos)
        head += f"X-From: {envelope.mail_from}\nX-Tls: {session.ssl is not None}\nX-User: {session.auth_data}\n"
        with open(path + ".new", "wb") as file:
            file.write(head.encode() + envelope.content)
        os.rename(path + ".new", path)
        return "250 kept"


def authenticate(server, session, envelope, mechanism, data):
    known = (data.login.decode(), data.password.decode()) == (order["user"], order["password"])
    said(f"login {mechanism} {known}")
    return AuthResult(success=known, handled=False, auth_data=data.login.decode())


order = json.load(sys.stdin)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(order["certificate"], order["key"])


settings = {}
if order["tls"] == "starttls":
    settings.update(tls_context=context, require_starttls=True)
if order["user"]:
    settings.update(authenticator=authenticate, auth_required=True, auth_require_tls=order["tls"] == "starttls")
server = Controller(
    Mails(),
    hostname="127.0.0.1",
    port=order["port"],
    ssl_context=context if order["tls"] == "tls" else None,
    **settings,
)
server.start()
said("ready")
threading.Event().wait()
