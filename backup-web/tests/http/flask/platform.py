"""The platform's way in: Flask, flask-login, and a second factor behind the password.

Takes a list of orders as JSON on standard input, each for one browser, and prints what its session cookie is in the end: null where it has none.
"""

import json
import sys
import time

from flask import Flask, flash, session
from flask.sessions import SecureCookieSessionInterface
from flask_login import LoginManager, UserMixin, login_user, logout_user
from itsdangerous import TimestampSigner


class Customer(UserMixin):
    def __init__(self, id):
        self.id = id


def platform(order):
    class Sessions(SecureCookieSessionInterface):
        salt = order.get("salt", SecureCookieSessionInterface.salt)

    app = Flask(__name__)
    app.secret_key = order["key"]
    app.session_interface = Sessions()
    LoginManager(app).user_loader(Customer)

    @app.post("/password")
    def password():
        session["second_factor_of"] = order["user"]
        return ""

    @app.post("/second-factor")
    def second_factor():
        session.permanent = order.get("permanent", False)
        login_user(Customer(session.pop("second_factor_of")))
        flash("Willkommen zurück 🛒")
        return ""

    @app.post("/browse")
    def browse():
        session.update(order["more"])
        return ""

    @app.post("/logout")
    def logout():
        logout_user()
        return ""

    return app


def cookie_of(order):
    # Where itsdangerous lets others tell the time.
    TimestampSigner.get_timestamp = lambda _: int(time.time()) + order.get("seconds", 0)
    browser = platform(order).test_client()
    for place in order["places"]:
        assert browser.post(place).status_code == 200, place
    cookie = browser.get_cookie("session")
    return cookie and cookie.value


json.dump([cookie_of(order) for order in json.load(sys.stdin)], sys.stdout)
