//! Fairness: one client at its worst, and how the others fare, on the real program.
//!
//! Each row of the table says who misbehaves how, and what the others are measured for. A row returns how long the
//! others waited; the table says how long that may be.

mod connections;
mod doors;
mod lanes;
mod logins;
mod subscriptions;

use std::time::Duration;

/// How long others may wait where nothing but their own work stands between: much less than any timeout that a hostile
/// client can run into on purpose, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);
/// How long a client may wait for a connection that another has to give up.
const A_SECOND: Duration = Duration::from_secs(1);
/// How long a device may wait that is not logged in yet.
const NOT_LOGGED_IN: Duration = Duration::from_secs(10);

/// How long a reader of an export may take nothing, and a little more.
const UNREAD: Duration = Duration::from_secs(45);

/// What subscriptions that do not match may add to the processor time of an event, in a program without optimisation.
/// It was 40 ms before events were matched once for all.
const MORE_CPU: Duration = Duration::from_millis(2);

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
    slow_bodies_of_one_token: "20 bodies of a megabyte that do not come, all of one token",
        "others post a small event and a large one", AT_ONCE => doors::slow_bodies_of_one_token;
    silent_connections: "connections_max silent connections of one address",
        "others post, from another address and from the same", AT_ONCE => doors::silent_connections;
    half_heads: "connections_max connections with half a head each",
        "others post, from another address and from the same", AT_ONCE => doors::half_heads;
    slow_bodies_on_every_connection: "a body that does not come on each of connections_max connections",
        "another address posts", AT_ONCE => doors::slow_bodies_on_every_connection;
    wrong_tokens: "an address that shows one wrong token after another",
        "a program at the same address posts with the right one", AT_ONCE => doors::wrong_tokens;
    silent_connections_to_monitoring: "40 connections to monitoring with half a head each",
        "Prometheus scrapes", AT_ONCE => doors::silent_connections_to_monitoring;
    silent_connections_to_the_hook: "100 silent connections to the hook",
        "Odoo posts", AT_ONCE => doors::silent_connections_to_the_hook;
    silent_connections_to_the_command_socket: "300 silent connections to the command socket",
        "an operator asks for the status", AT_ONCE => doors::silent_connections_to_the_command_socket;
    readers_that_take_nothing: "two exports whose readers take nothing",
        "an operator verifies the journal", UNREAD => doors::readers_that_take_nothing;
    a_lane_filled_by_one: "a publisher that fills a lane while central is away",
        "another device publishes in that lane", AT_ONCE => lanes::a_lane_filled_by_one;
    dead_letters_filled_by_one: "a publisher of nothing but junk",
        "another device's dead letters are taken, and stay", AT_ONCE => lanes::dead_letters_filled_by_one;
    a_client_over_its_rate: "a client that publishes as fast as it can, with events_per_second_max",
        "another client publishes", AT_ONCE => lanes::a_client_over_its_rate;
    idle_connections_of_one_user: "connections_max idle connections of one user",
        "another user logs in and publishes", A_SECOND => connections::idle_connections_of_one_user;
    idle_connections_of_one_address: "connections_max idle connections of one address, without a login",
        "two other addresses connect", A_SECOND => connections::idle_connections_of_one_address;
    memory_held_by_one_user: "large publishes that never end, of one user on many connections",
        "another user publishes 100 kB", AT_ONCE => connections::memory_held_by_one_user;
    groups_of_others: "80 connections with 64 shared subscriptions each",
        "what an event that none of them matches costs more", MORE_CPU => subscriptions::groups_of_others;
    groups_that_match: "20 connections with 64 shared subscriptions each to everything, which take nothing",
        "a device publishes 70 events a second", A_SECOND => subscriptions::groups_that_match;
}
