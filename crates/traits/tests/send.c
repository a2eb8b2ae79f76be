/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Sends numbered datagrams with traits of the socket, 7 for its tenant, and with traits of their own.
 * Usage: send ADDRESS PORT
 */
#include <packet_traits/socket.h>
#include <endian.h>
#include <netdb.h>
#include <stdio.h>
#include <unistd.h>

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV }, *to;
	struct traits own = {}, next = {};
	struct traits_key tenant, seq;
	__u64 data[8] = {}, number;
	char too_long[70000] = {};
	__u32 who = 7, other = 8;
	int fd;

	if (argc != 3 || getaddrinfo(argv[1], argv[2], &hints, &to))
		return 2;
	printf("uid %d\n", getuid());
	fd = socket(to->ai_family, SOCK_DGRAM, 0);
	if (fd < 0 || traits_key_by_name(fd, "tenant", &tenant) || traits_key_by_name(fd, "seq", &seq))
		return fail("keys");
	if (setsockopt(fd, SOL_TRAITS, SOCKET_TRAITS + tenant.number, &who, sizeof(who)))
		return fail("SOCKET_TRAITS");
	for (number = 0; number < 5; number++) {
		data[0] = htobe64(number);
		if (number % 2 == 0) {
			/* what is not sent leaves nothing for this one */
			if (number == 2 &&
			    traits_send(fd, too_long, sizeof(too_long), 0, to->ai_addr, to->ai_addrlen, &next) < 0)
				printf("%s\n", strerror(errno));
			if (sendto(fd, data, sizeof(data), 0, to->ai_addr, to->ai_addrlen) < 0)
				return fail("sendto");
			continue;
		}
		traits_put(&next, &seq, &number, sizeof(number));
		if (number == 3)
			traits_put(&next, &tenant, &other, sizeof(other));
		if (traits_send(fd, data, sizeof(data), 0, to->ai_addr, to->ai_addrlen, &next) < 0)
			return fail("traits_send");
	}
	own.present = 1ULL << 63; /* no such key */
	if (traits_set(fd, SOCKET_TRAITS, &own))
		printf("%s\n", strerror(errno));
	freeaddrinfo(to);
	return 0;
}
