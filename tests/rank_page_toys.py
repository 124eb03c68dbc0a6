"""Two users and a client of the ranking page, shared by its tests."""

from starlette.testclient import TestClient

from llmrecipes.ranking.page import build_app
from llmrecipes.ranking.users import read_users, write_user

PASSWORD = "correct horse battery"


def ann_and_bob(tmp_path):
    """Ann is an administrator."""
    file = str(tmp_path / "users.txt")
    write_user(file, "ann", PASSWORD, is_admin=True)
    write_user(file, "bob", PASSWORD + "2", is_admin=False)
    return read_users(file)


def client_for(store, **options):
    return TestClient(build_app(store, "Be fair.", **options), base_url="http://127.0.0.1")
