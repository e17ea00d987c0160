"""Job frameworks, web servers and logging: each module sets up one, by `instrument(…)`, and takes it back by
`uninstrument()`. What an attempt at a job is, for all of them, is in `attempts`."""
