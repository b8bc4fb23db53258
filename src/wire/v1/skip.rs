//! Passes over a value that nobody reads.
//!
//! The reader's own does that too, but not over the three tokens that are numbers in this protocol only.

use crate::{
    error::Error,
    wire::json::{Items, Members, Reader},
};
use smallvec::SmallVec;

enum Open {
    Object(Members),
    Array(Items),
}

/// Skips one value of any kind, however large, and checks its grammar.
pub(super) fn skip(reader: &mut Reader<'_>) -> Result<(), Error> {
    let mut open: SmallVec<[Open; 4]> = SmallVec::new();
    loop {
        match reader.peek() {
            Some(b'{') => open.push(Open::Object(reader.object()?)),
            Some(b'[') => open.push(Open::Array(reader.array()?)),
            _ if ["NaN", "Infinity", "-Infinity"].into_iter().any(|word| reader.take(word)) => {}
            // Anything that holds no other value.
            _ => reader.skip()?,
        }
        loop {
            let more = match open.last_mut() {
                None => return Ok(()),
                Some(Open::Array(items)) => reader.item(items)?,
                Some(Open::Object(members)) => match reader.member(members)? {
                    Some(name) => {
                        reader.note(members, name)?;
                        true
                    }
                    None => false,
                },
            };
            if more {
                break;
            }
            open.pop();
        }
    }
}
