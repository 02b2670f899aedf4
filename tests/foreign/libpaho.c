/* Eclipse Paho for C, as Debian ships it (libpaho-mqtt3cs), against a gateway. */

#include <MQTTClient.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MANY 1000
#define IN_FLIGHT 500
#define LARGE 200000
#define USER "press"
#define PASSWORD "right"
#define CERTIFIED "gw-01"

static jmp_buf failed;
static char reason[512];
static int patience; /* ms */

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    longjmp(failed, 1);
}

static const char *say(const char *format, ...)
{
    static char texts[8][256];
    static int next;
    char *text = texts[next++ % 8];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof texts[0], format, arguments);
    va_end(arguments);
    return text;
}

static const char *topic(const char *machine) { return say("foreign/%s/x", machine); }
static const char *event_topic(const char *machine) { return say("test/plant/foreign.event/v1/%s", machine); }

static const char *payload(const char *machine, int n, int fill)
{
    static char text[LARGE + 512];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int length = snprintf(text, sizeof text, "{\"id\":\"%s-%d-%ld%09ld\",\"n\":%d,\"fill\":\"", machine, n,
                          (long)now.tv_sec, now.tv_nsec, n);
    memset(text + length, 'x', (size_t)fill);
    strcpy(text + length + fill, "\"}");
    return text;
}

enum { KEEPS = 1, WILL = 2, LOGIN = 4, TLS = 8 };

typedef struct {
    MQTTClient client;
    int version;
    int has_session;
} Peer;

static Peer connect_peer(const char *who, int version, int flags)
{
    Peer peer = {.version = version};
    int is_5 = version == 5;
    const char *port = getenv(flags & TLS ? "FOREIGN_TLS_PORT" : flags & LOGIN ? "FOREIGN_LOGIN_PORT" : "FOREIGN_PORT");
    const char *url = say("%s://localhost:%s", flags & TLS ? "ssl" : "tcp", port);
    MQTTClient_createOptions create = MQTTClient_createOptions_initializer;
    create.MQTTVersion = is_5 ? MQTTVERSION_5 : MQTTVERSION_3_1_1;
    int code = MQTTClient_createWithOptions(&peer.client, url, who, MQTTCLIENT_PERSISTENCE_NONE, NULL, &create);
    if (code)
        fail("create: %d", code);

    MQTTClient_connectOptions options = MQTTClient_connectOptions_initializer;
    MQTTClient_connectOptions options5 = MQTTClient_connectOptions_initializer5;
    if (is_5) {
        options = options5;
        options.cleanstart = !(flags & KEEPS);
    } else {
        options.MQTTVersion = MQTTVERSION_3_1_1;
        options.cleansession = !(flags & KEEPS);
    }
    options.maxInflightMessages = IN_FLIGHT;
    options.reliable = 0;
    options.connectTimeout = patience / 1000;
    MQTTClient_willOptions will = MQTTClient_willOptions_initializer;
    if (flags & WILL) {
        will.topicName = strdup(topic(strndup(who, strrchr(who, '-') - who)));
        will.message = strdup(payload(who, 99, 0));
        will.qos = 1;
        options.will = &will;
    }
    if (flags & LOGIN) {
        options.username = USER;
        options.password = PASSWORD;
    }
    MQTTClient_SSLOptions tls = MQTTClient_SSLOptions_initializer;
    if (flags & TLS) {
        tls.trustStore = getenv("FOREIGN_CA");
        tls.keyStore = getenv("FOREIGN_CERT");
        tls.privateKey = getenv("FOREIGN_KEY");
        tls.verify = 1;
        options.ssl = &tls;
    }
    if (is_5) {
        MQTTProperties properties = MQTTProperties_initializer;
        MQTTProperty expiry = {.identifier = MQTTPROPERTY_CODE_SESSION_EXPIRY_INTERVAL};
        expiry.value.integer4 = flags & KEEPS ? 600 : 0;
        MQTTProperties_add(&properties, &expiry);
        MQTTResponse response = MQTTClient_connect5(peer.client, &options, &properties, NULL);
        code = response.reasonCode;
        MQTTResponse_free(response);
        MQTTProperties_free(&properties);
    } else {
        code = MQTTClient_connect(peer.client, &options);
    }
    if (code)
        fail("CONNACK: %d", code);
    peer.has_session = options.returned.sessionPresent;
    return peer;
}

static void leave(Peer peer)
{
    int code = peer.version == 5 ? MQTTClient_disconnect5(peer.client, patience, MQTTREASONCODE_SUCCESS, NULL)
                                 : MQTTClient_disconnect(peer.client, patience);
    if (code)
        fail("DISCONNECT: %d", code);
    MQTTClient_destroy(&peer.client);
}

static void publish(Peer peer, const char *machine, int qos, int count, int fill)
{
    MQTTClient_deliveryToken tokens[MANY];
    for (int n = 0; n < count; n++) {
        const char *text = payload(machine, n, fill);
        int code;
        if (peer.version == 5) {
            MQTTResponse response = MQTTClient_publish5(peer.client, topic(machine), (int)strlen(text), text, qos, 0,
                                                        NULL, &tokens[n]);
            code = response.reasonCode;
            MQTTResponse_free(response);
        } else {
            code = MQTTClient_publish(peer.client, topic(machine), (int)strlen(text), text, qos, 0, &tokens[n]);
        }
        if (code)
            fail("PUBLISH %d: %d", n, code);
    }
    for (int n = 0; qos && n < count; n++)
        if (MQTTClient_waitForCompletion(peer.client, tokens[n], patience))
            fail("publish %d at QoS %d is not acknowledged", n, qos);
}

static void subscribe(Peer peer, const char *machine)
{
    int code;
    if (peer.version == 5) {
        MQTTResponse response = MQTTClient_subscribe5(peer.client, event_topic(machine), 1, NULL, NULL);
        code = response.reasonCode;
        MQTTResponse_free(response);
        if (code != 1)
            fail("SUBACK: %d", code);
    } else if ((code = MQTTClient_subscribe(peer.client, event_topic(machine), 1))) {
        fail("SUBACK: %d", code);
    }
}

static void expect(Peer peer, int from, int to)
{
    for (int n = from; n < to; n++) {
        char *name = NULL;
        int length;
        MQTTClient_message *message = NULL;
        int code = MQTTClient_receive(peer.client, &name, &length, &message, (unsigned long)patience);
        if (code || !message)
            fail("%d is due, and nothing comes: %d", n, code);
        char *text = strndup(message->payload, (size_t)message->payloadlen);
        char *found = strstr(text, "\"n\":");
        int heard = found ? atoi(found + 4) : -1;
        free(text);
        MQTTClient_freeMessage(&message);
        MQTTClient_free(name);
        if (heard != n)
            fail("%d is due, not %d", n, heard);
    }
}

static void qos0(const char *who, int version)
{
    Peer peer = connect_peer(who, version, 0);
    publish(peer, who, 0, 20, 0);
    leave(peer);
}

static void qos1(const char *who, int version)
{
    Peer peer = connect_peer(who, version, 0);
    publish(peer, who, 1, 20, 0);
    leave(peer);
}

static void qos2(const char *who, int version)
{
    Peer peer = connect_peer(who, version, 0);
    publish(peer, who, 2, 20, 0);
    leave(peer);
}

static void large(const char *who, int version)
{
    Peer peer = connect_peer(who, version, 0);
    publish(peer, who, 1, 1, LARGE);
    leave(peer);
}

static void many(const char *who, int version)
{
    Peer peer = connect_peer(who, version, 0);
    publish(peer, who, 1, MANY, 0);
    leave(peer);
}

static void subscribing(const char *who, int version)
{
    Peer peer = connect_peer(who, version, 0);
    subscribe(peer, who);
    publish(peer, who, 1, 50, 0);
    expect(peer, 0, 50);
    leave(peer);
}

static void session(const char *who, int version)
{
    Peer other = connect_peer(say("%s-other", who), version, 0);
    Peer peer = connect_peer(who, version, KEEPS);
    subscribe(peer, who);
    leave(peer);
    publish(other, who, 1, 10, 0);
    peer = connect_peer(who, version, KEEPS);
    /* The library tells it in 3.1.1 alone. */
    if (version == 3 && !peer.has_session)
        fail("the session is gone");
    expect(peer, 0, 10);
    leave(peer);
    leave(other);
}

static void will(const char *who, int version)
{
    Peer watcher = connect_peer(say("%s-watcher", who), version, 0);
    subscribe(watcher, who);
    leave(connect_peer(say("%s-polite", who), version, WILL));
    /* Another process, which ends without a word. */
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "libpaho", "mortal", say("%s-mortal", who), version == 5 ? "5" : "3", NULL);
        _exit(127);
    }
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status))
        fail("the client that was to die did not connect");
    expect(watcher, 99, 100);
    leave(watcher);
}

static void login(const char *who, int version)
{
    Peer peer = connect_peer(who, version, LOGIN);
    publish(peer, USER, 1, 5, 0);
    leave(peer);
}

static void tls(const char *who, int version)
{
    Peer peer = connect_peer(who, version, TLS);
    publish(peer, CERTIFIED, 1, 5, 0);
    leave(peer);
}

static const struct {
    const char *name;
    void (*run)(const char *who, int version);
} ALL[] = {{"qos0", qos0},   {"qos1", qos1},           {"qos2", qos2},       {"large", large}, {"many", many},
           {"subscribe", subscribing}, {"session", session}, {"will", will},   {"login", login}, {"tls", tls}};

int main(int count, char **arguments)
{
    MQTTClient_init_options init = MQTTClient_init_options_initializer;
    init.do_openssl_init = 1;
    MQTTClient_global_init(&init);
    patience = 20000;
    if (count == 4 && !strcmp(arguments[1], "mortal")) {
        if (setjmp(failed))
            _exit(1);
        connect_peer(arguments[2], atoi(arguments[3]), WILL);
        _exit(0);
    }
    const char *awaited = getenv("FOREIGN_AWAITED");
    volatile int has_failed = 0;
    for (volatile int version = 3; version <= 5; version += 2) {
        for (volatile size_t index = 0; index < sizeof ALL / sizeof ALL[0]; index++) {
            const char *name = strdup(say("%s-%d", ALL[index].name, version));
            patience = awaited && strstr(awaited, name) ? 1000 : 20000;
            if (setjmp(failed)) {
                has_failed = 1;
                printf("FAIL %s %s\n", name, reason);
            } else {
                ALL[index].run(strdup(say("libpaho-%s", name)), version);
                printf("ok %s\n", name);
            }
            fflush(stdout);
        }
    }
    return has_failed;
}
