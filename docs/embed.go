// Package docs holds the guides as a static site. `make docs` makes it from the Markdown pages.
package docs

import _ "embed" // for the site

// Site is a zip archive. Beside the pages it has manifest.json, with the checksum of what it was made of and the hashes of its scripts.
//
//go:embed site.zip
var Site string
