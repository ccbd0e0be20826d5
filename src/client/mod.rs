//! `verus bench` and `verus demo`: clients that drive a server over the wire.
