//! Fairness: one client at its worst, and how the others fare, on the real program.
//!
//! Each row of the table says who misbehaves how, and what the others are measured for. A row returns how long the
//! others waited; the table says how long that may be.

mod logins;

use std::time::Duration;

/// How long others may wait where nothing but their own work stands between: much less than any timeout that a hostile
/// client can run into on purpose, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);
/// How long a device may wait that is not logged in yet.
const NOT_LOGGED_IN: Duration = Duration::from_secs(10);

macro_rules! table {
    ($($name:ident: $worst:literal, $others:literal, $longest:expr => $row:path;)*) => {
        $(
            #[test]
            fn $name() {
                let waited = $row();
                println!("{}; {}: {waited:?}, at most {:?}", $worst, $others, $longest);
                assert!(waited <= $longest, "{}; {}: {waited:?}, at most {:?}", $worst, $others, $longest);
            }
        )*
    };
}

table! {
    a_flood_of_wrong_passwords: "300 wrong logins a second from one address",
        "a device at another address logs in for the first time", NOT_LOGGED_IN => logins::flood_from_one_address;
    a_flood_of_wrong_passwords_of_a_crowd: "wrong passwords for one name from 40 addresses",
        "the device of that name logs in for the first time", NOT_LOGGED_IN => logins::flood_on_one_name;
    a_neighbour_with_an_old_password: "a device that tries its old password again and again",
        "its neighbours behind the same router log in", NOT_LOGGED_IN => logins::old_password_behind_the_same_router;
    a_flood_of_logins_and_a_stop: "300 wrong logins a second from 20 addresses",
        "the gateway stops", AT_ONCE => logins::stop_during_a_flood;
}
