"""Prints the titles of an SVG's boxes as json: `titles.py FILE`."""

import json
import sys
import xml.etree.ElementTree as tree

root = tree.parse(sys.argv[1]).getroot()
assert root.tag == "{http://www.w3.org/2000/svg}svg", root.tag
json.dump([title.text for title in root.iter("{http://www.w3.org/2000/svg}title")], sys.stdout)
