"""The small store that tests train on."""

from lsm_cli.data.tiny import write_store as write_store
