"""How companies and a coordinator get each other's keys: requests, kits, their installation, and the provisioner.

`settings` reads federation.toml, `keys` makes the keys of one party, `request` is the file with their public halves,
`provisioner` turns requests into a signed roster and kits, `kit` packs and unpacks these, `installing` puts them in
place on the other machines, and `trial` does all of it on one. The roster itself is `protocol.roster`.
"""
