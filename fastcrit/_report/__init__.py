"""Inside of `fastcrit.report`: figures, words and the page."""
