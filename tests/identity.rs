//! Who may be whom: every way to a name against every place where a name counts, on the real program.

use crate::common::await_port;
use crate::common::client::{Client, Hello};
use crate::common::free_address;
use crate::common::gateway::{Gateway, payload};
use forebay::sources::mqtt::put_user;

const STATE: &str = "plant/line1/press/state";

/// A password is changed because somebody else has learned it: the connection of whoever logged in with the old one
/// ends, whether the reload is asked for or the gateway finds the changed file.
#[test]
fn a_changed_password_ends_the_connections_that_logged_in_with_the_old_one() {
    let listen = free_address();
    let rest = format!(
        "\n[[source.mqtt]]\nname = \"named\"\nlisten = \"{listen}\"\npasswords = \"users\"\nacl = [{{ publish = [\"plant/#\"] }}]\n"
    );
    let mut gateway = Gateway::prepare("password", &rest);
    let users = gateway.folder.join("users");
    put_user(&users, "press", b"the old one").expect("written");
    put_user(&users, "robot", b"stays").expect("written");
    gateway.run();
    await_port(listen);
    let hello = |client: &'static str, login| Hello { client, login: Some(login), ..Hello::default() };
    let old = ("press", "the old one");
    let (mut thief, _) = Client::connect(listen, &hello("thief", old));
    let (mut robot, _) = Client::connect(listen, &hello("robot", ("robot", "stays")));
    thief.publish(true, 1, STATE, payload(1, 1).as_bytes());
    put_user(&users, "press", b"the new one").expect("written");
    assert!(gateway.command(&["reload", "CONFIG"]).status.success());
    assert_eq!(thief.disconnect_code(), 0x87, "not authorized any more");
    robot.publish(true, 1, STATE, payload(2, 1).as_bytes());
    let (_, connack) = Client::connect(listen, &hello("thief", old));
    assert_eq!(connack[2], 0x86, "the old password lets nobody in");
    let (_, connack) = Client::connect(listen, &hello("press", ("press", "the new one")));
    assert_eq!(connack[2], 0, "the new one does");
}
