//! First bytes of a client: any bytes; an answer stays whatever follows, and where
//! they are cut makes no difference.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nemoclaw_spec::tls::{Hello, hello};

fuzz_target!(|input: (&[u8], &[u8])| {
    let (start, more) = input;
    let first = hello(start);
    if first != Hello::Incomplete {
        assert_eq!(hello(&[start, more].concat()), first);
    }
});
