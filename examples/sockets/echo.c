// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * An echo server, UDP and TCP, that says which traits came with what it receives. Plain socket calls and one header.
 *
 *	cc -O2 -Iinclude -pthread examples/sockets/echo.c -o echo
 *	traits sockets attach			# once, as root
 *	./echo --tenant 7 127.0.0.1 7777	# as anybody, started after that
 *
 * It prints a line for every datagram, for every connection (the traits of its SYN) and for all data on one:
 *
 *	udp 10.77.0.1:40000 tenant=7 flow_id=12
 *	tcp 10.77.0.1:40002 syn tenant=2 flow_id=14
 *	tcp 10.77.0.1:40002 data tenant=2 flow_id=15
 *
 * What it sends has traits as well, for the programs that see packets leave: the answer to a datagram has that
 * datagram's `flow_id`, and with --tenant all of them have `tenant`.
 */
#define _GNU_SOURCE /* accept4 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <packet_traits/socket.h>

/* The keys there are. */
static struct traits_key keys[TRAITS_KEY_MAX];
static int key_count;

static const struct traits_key *find_key(const char *name)
{
	for (int i = 0; i < key_count; i++)
		if (!strcmp(keys[i].name, name))
			return &keys[i];
	return NULL;
}

static void print_integer(unsigned __int128 value)
{
	if (value > 9)
		print_integer(value / 10);
	putchar('0' + (int)(value % 10));
}

/* Prints a value as people write it. */
static void print_value(const struct traits_key *key, const unsigned char *bytes)
{
	unsigned __int128 integer = 0;
	char text[INET6_ADDRSTRLEN];
	long long number;
	int i;

	switch (key->type) {
	case TRAITS_I64:
		memcpy(&number, bytes, sizeof(number));
		printf("%lld", number);
		break;
	case TRAITS_IPV4:
		fputs(inet_ntop(AF_INET, bytes, text, sizeof(text)), stdout);
		break;
	case TRAITS_IPV6:
		fputs(inet_ntop(AF_INET6, bytes, text, sizeof(text)), stdout);
		break;
	case TRAITS_MAC:
		for (i = 0; i < 6; i++)
			printf(i ? ":%02x" : "%02x", bytes[i]);
		break;
	case TRAITS_UUID:
		for (i = 0; i < 16; i++)
			printf(i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", bytes[i]);
		break;
	default:
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
		memcpy(&integer, bytes, key->size);
#else
		memcpy((char *)&integer + sizeof(integer) - key->size, bytes, key->size);
#endif
		print_integer(integer);
	}
}

/* Prints `tenant=7 flow_id=12`; of a flag just the name. */
static void print_traits(const struct traits *traits)
{
	unsigned char value[16];
	int printed = 0;

	for (int i = 0; i < key_count; i++) {
		int size = traits_value(traits, &keys[i], value, sizeof(value));

		if (size < 0)
			continue;
		printf(" %s", keys[i].name);
		if (size) {
			putchar('=');
			print_value(&keys[i], value);
		}
		printed++;
	}
	if (traits->mark) {
		printf(" mark=%u", traits->mark);
		printed++;
	}
	if (!printed)
		fputs(" none", stdout);
}

/* Prints a line; no other thread's gets into it. */
static void say(const char *protocol, const struct sockaddr_storage *peer, const char *what,
		const struct traits *traits)
{
	char host[NI_MAXHOST], port[NI_MAXSERV];

	if (getnameinfo((const struct sockaddr *)peer, sizeof(*peer), host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV))
		return;
	flockfile(stdout);
	printf(strchr(host, ':') ? "%s [%s]:%s%s" : "%s %s:%s%s", protocol, host, port, what);
	print_traits(traits);
	putchar('\n');
	funlockfile(stdout);
}

/* Whether a call failed because of `traits sockets detach`: the server goes on without traits. */
static int is_detached(void)
{
	return errno == ENOPROTOOPT || errno == EOPNOTSUPP;
}

static void *serve_udp(void *arg)
{
	const struct traits_key *flow_id = find_key("flow_id");
	int fd = (int)(long)arg;
	char data[65535];

	for (;;) {
		struct sockaddr_storage peer;
		struct traits traits, answer = {};
		ssize_t len = traits_recv(fd, data, sizeof(data), 0, &peer, &traits);
		__u64 flow;

		if (len < 0) {
			warn("cannot receive a datagram");
			continue;
		}
		say("udp", &peer, "", &traits);
		if (flow_id && traits_value(&traits, flow_id, &flow, sizeof(flow)) > 0)
			traits_put(&answer, flow_id, &flow, sizeof(flow));
		if (traits_send(fd, data, len, 0, (struct sockaddr *)&peer, sizeof(peer), &answer) >= 0)
			continue;
		if (!is_detached() || sendto(fd, data, len, 0, (struct sockaddr *)&peer, sizeof(peer)) < 0)
			warn("cannot answer a datagram");
	}
	return NULL;
}

static void *serve_connection(void *arg)
{
	int fd = (int)(long)arg;
	struct sockaddr_storage peer;
	socklen_t peer_len = sizeof(peer);
	struct traits traits;
	char data[65536];
	ssize_t len;

	if (getpeername(fd, (struct sockaddr *)&peer, &peer_len))
		goto out;
	if (traits_get(fd, SYN_TRAITS, &traits) && !is_detached())
		goto out;
	say("tcp", &peer, " syn", &traits);
	while ((len = recv(fd, data, sizeof(data), 0)) > 0) {
		if (traits_get(fd, LAST_TRAITS, &traits) && !is_detached())
			goto out;
		say("tcp", &peer, " data", &traits);
		for (ssize_t sent = 0, n; sent < len; sent += n) {
			n = send(fd, data + sent, len - sent, MSG_NOSIGNAL);
			if (n < 0)
				goto out;
		}
	}
out:
	close(fd);
	return NULL;
}

static void start(void *(*thread)(void *), int fd)
{
	pthread_t id;

	errno = pthread_create(&id, NULL, thread, (void *)(long)fd);
	if (errno)
		err(1, "cannot start a thread");
	pthread_detach(id);
}

static void *serve_tcp(void *arg)
{
	int fd = (int)(long)arg;

	for (;;) {
		int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

		if (connection < 0) {
			warn("cannot accept a connection");
			sleep(1); /* if there are too many open files, later there may not be */
			continue;
		}
		start(serve_connection, connection);
	}
	return NULL;
}

/* A UDP socket that receives traits. With `who`, everything it sends has that tenant. */
static int open_udp(const struct addrinfo *address, const char *who)
{
	int fd = socket(address->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	const struct traits_key *tenant;
	struct traits own = {};
	__u32 number;

	if (fd < 0)
		err(1, "cannot make a UDP socket");
	key_count = traits_keys(fd, keys);
	if (key_count < 0) {
		if (errno == ENOPROTOOPT)
			errx(1, "not attached: run \"traits sockets attach\" as root");
		err(1, "cannot read the keys");
	}
	if (traits_switch(fd, RCV_TRAITS, 1))
		err(1, "cannot turn RCV_TRAITS on");
	tenant = find_key("tenant");
	if (who && tenant) {
		number = strtoul(who, NULL, 10);
		if (traits_put(&own, tenant, &number, sizeof(number)))
			errx(1, "the key tenant is not a u32");
		if (traits_set(fd, SOCKET_TRAITS, &own))
			err(1, "cannot set SOCKET_TRAITS");
	}
	if (bind(fd, address->ai_addr, address->ai_addrlen))
		err(1, "cannot bind the UDP socket");
	return fd;
}

/* A listener whose connections have the traits of their SYN and of their newest data. */
static int open_tcp(const struct addrinfo *address)
{
	int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int on = 1;

	if (fd < 0)
		err(1, "cannot make a TCP socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (traits_switch(fd, SAVE_SYN_TRAITS, 1) || traits_switch(fd, RCV_TRAITS, 1))
		err(1, "cannot turn SAVE_SYN_TRAITS and RCV_TRAITS on");
	if (bind(fd, address->ai_addr, address->ai_addrlen) || listen(fd, SOMAXCONN))
		err(1, "cannot listen");
	return fd;
}

int main(int argc, char **argv)
{
	const struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM };
	const struct option options[] = { { "tenant", required_argument, NULL, 't' }, {} };
	struct addrinfo *address;
	const char *who = NULL;
	int option, error, udp, tcp, number;
	sigset_t stop;

	while ((option = getopt_long(argc, argv, "", options, NULL)) == 't')
		who = optarg;
	if (option != -1 || argc - optind != 2)
		errx(2, "usage: echo [--tenant N] ADDRESS PORT");
	error = getaddrinfo(argv[optind], argv[optind + 1], &hints, &address);
	if (error)
		errx(2, "%s port %s: %s", argv[optind], argv[optind + 1], gai_strerror(error));
	udp = open_udp(address, who);
	tcp = open_tcp(address);
	freeaddrinfo(address);
	setvbuf(stdout, NULL, _IOLBF, 0);

	/* for this thread alone: the others inherit the mask */
	sigemptyset(&stop);
	sigaddset(&stop, SIGINT);
	sigaddset(&stop, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &stop, NULL);
	start(serve_udp, udp);
	start(serve_tcp, tcp);
	sigwait(&stop, &number);
	return 0;
}
