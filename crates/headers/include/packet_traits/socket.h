/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Packet traits for applications: plain getsockopt, setsockopt and recvmsg. No library, no privilege.
 *
 * Somebody with privileges has run `traits sockets attach` for the cgroup the process is in. Until then every call below
 * fails with ENOPROTOOPT.
 *
 *	#include <stdio.h>
 *	#include <packet_traits/socket.h>
 *
 *	int serve(int fd)
 *	{
 *		struct traits_key tenant;
 *		struct traits traits;
 *		char data[2048];
 *		__u32 who;
 *
 *		if (traits_key_by_name(fd, "tenant", &tenant) || traits_switch(fd, RCV_TRAITS, 1))
 *			return -1;
 *		while (traits_recv(fd, data, sizeof(data), 0, NULL, &traits) >= 0)
 *			if (traits_value(&traits, &tenant, &who, sizeof(who)) > 0)
 *				printf("tenant %u\n", who);
 *		return -1;
 *	}
 *
 * The options, for those who do without the functions at the end. Level SOL_TRAITS:
 *
 *	option			get				set
 *	TRAITS_KEYS + first	struct traits_key[]: the keys	-
 *				from number `first` on, as many
 *				as there is room for
 *	SAVE_SYN_TRAITS		int				int, 0 or 1: TCP, before connect; sockets accepted
 *								from a listener inherit it
 *	RCV_TRAITS		struct traits_receive		int, 0 or 1. UDP: traits with each datagram;
 *								TCP: LAST_TRAITS; inherited like SAVE_SYN_TRAITS
 *	SYN_TRAITS + key	value of the SYN's trait	-
 *	LAST_TRAITS + key	of the newest data's trait	-
 *	SOCKET_TRAITS + key	of the socket's own trait	value: on every packet the socket sends from now on; no bytes:
 *								deletes it
 *	NEXT_TRAITS + key	-				value: on the next datagram that this thread sends on
 *								this socket and that gets to the cgroup's egress hook,
 *								over the socket's own
 *
 * `key` is a key's number, from TRAITS_KEYS. With TRAITS_ALL for it, the option's value is a struct traits: all of the
 * packet's or the socket's traits in one call. Values are in the host's byte order; addresses as on the wire. A flag's
 * value is one byte or an int, 1 or 0.
 *
 * UDP: with RCV_TRAITS each datagram's SO_MARK control message (which RCV_TRAITS turns on) is a handle to its traits, an int
 * that may be negative:
 *	level SOL_TRAITS_DATAGRAM, option handle	struct traits of that datagram
 *	level SOL_TRAITS_DATAGRAMS, option handle	the same for it and the numbers after it: as many as the buffer has
 *							room for, TRAITS_BATCH_MAX at most, each traits_receive.traits_len long
 * The datagram's own mark is in traits.mark. A socket has places for the newest traits_receive.slots datagrams: if it
 * lags behind by more, TRAITS_FOUND is not set and there are no traits, never those of another datagram (short of one that
 * waits while 2^32 others come to its socket).
 *
 * MPTCP sockets have no traits (EOPNOTSUPP). Go's net.Listen makes such since Go 1.24: see net.ListenConfig.SetMultipathTCP.
 *
 * A datagram that is sent with success may not get to that hook (MSG_PROBE, a netfilter queue). NEXT_TRAITS + TRAITS_ALL without
 * a key takes back what none has taken; traits_send does that. Threads that send with traits of their own on one socket need a
 * lock around all of it.
 *
 * On a socket with RCV_TRAITS, what runs between the cgroup's ingress hook and the application sees the handle for the mark:
 * programs at the ingress hook of cgroups above or attached later, and the socket's own filter. SO_RCVMARK must stay on; turned
 * off by the application, there are no traits and marks are left alone. Raw sockets have none (EOPNOTSUPP).
 *
 * Errors
 *	ENOPROTOOPT	not attached; where the socket's protocol has another error for a level it does not know, that: a get of
 *			an IPv4 socket gives EOPNOTSUPP (do_ip_getsockopt in net/ipv4/ip_sockglue.c)
 *	EINVAL		no such option; a key that is not registered; a value that is not of the key's size, or, for a get, a
 *			buffer too small for it. Nothing has been written to the buffer
 *	ENOENT		that key is not set (get of one key; TRAITS_ALL has no such error); TRAITS_KEYS: there are no more
 *	EOPNOTSUPP	not for this kind of socket, or for a listening one
 *	EISCONN		SAVE_SYN_TRAITS on a connected socket
 *	EAGAIN		just being changed, by a packet or the registry: read again (LAST_TRAITS, TRAITS_KEYS)
 *	ENOSPC		no room: the limits of `traits sockets attach`, of all processes together or of this user's
 *			(RCV_TRAITS of UDP; a socket that has it keeps its room until it is closed), or the socket's own
 *			(net.core.optmem_max). What was set before stays
 */
#ifndef PACKET_TRAITS_SOCKET_H
#define PACKET_TRAITS_SOCKET_H

#include <linux/types.h>

#define SOL_TRAITS 0x5452
#define SOL_TRAITS_DATAGRAM 0x5453
#define SOL_TRAITS_DATAGRAMS 0x5454

#define TRAITS_KEYS 0x000
#define SAVE_SYN_TRAITS 0x100
#define RCV_TRAITS 0x200
#define SYN_TRAITS 0x300
#define LAST_TRAITS 0x400
#define SOCKET_TRAITS 0x500
#define NEXT_TRAITS 0x600

#define TRAITS_ALL 0xff

#define TRAITS_KEY_MAX 64 /* keys of a registry */
#define TRAITS_VALUES_MAX 232 /* bytes of values of a packet */
#define TRAITS_BATCH_MAX 16

/* What a value is; a flag has none. Timestamps are nanoseconds of CLOCK_MONOTONIC. */
enum traits_type {
	TRAITS_FLAG = 1,
	TRAITS_U8 = 2,
	TRAITS_U16 = 3,
	TRAITS_U32 = 4,
	TRAITS_U64 = 5,
	TRAITS_U128 = 6,
	TRAITS_I64 = 7,
	TRAITS_IPV4 = 8,
	TRAITS_IPV6 = 9,
	TRAITS_MAC = 10,
	TRAITS_UUID = 11,
	TRAITS_TIMESTAMP = 12,
};

/* A key: an element of what TRAITS_KEYS gives, which are in order of their numbers. */
struct traits_key {
	char name[32]; /* NUL-terminated */
	__u8 number;
	__u8 type; /* enum traits_type */
	__u8 size; /* bytes of a value; 0: a flag */
	__u8 merge; /* 0 block, 1 keep-first, 2 discard */
	__u16 offset; /* of the value in traits.values */
	__u16 distance; /* of the slot, in the packet's area: bytes back from the packet data */
};

/*
 * The traits of a packet, a datagram or a socket. The kernel side writes and wants no more of `values` than there is; what is
 * not the value of a key that is set and registered is zero.
 */
struct traits {
	__u64 present; /* bit k: key k is set */
	__u32 flags; /* TRAITS_FOUND */
	__u32 mark; /* a datagram's own mark, if TRAITS_FOUND */
	__u8 values[TRAITS_VALUES_MAX];
};

/* There was such a packet, and what is here is what it carried, be it nothing. */
#define TRAITS_FOUND 1

/* What RCV_TRAITS gives. */
struct traits_receive {
	__u32 enabled;
	__u32 traits_len; /* bytes of a struct traits that are used */
	__u32 flow_len; /* bytes of the area's regions, footers included */
	__u32 packet_len;
	/* UDP with RCV_TRAITS; else 0 */
	__u32 ring; /* which ring of slots the socket has */
	__u32 slots; /* a power of two */
	__u32 generation; /* tells it from an earlier owner of that ring */
	__u32 slot_len;
	__u64 instance; /* which attachment the ring is of; never 0 */
	/* given if there is room for it */
	__u64 revision; /* of the registry: another one once a key is registered or removed */
};

#define TRAITS_HEADER_LEN 16

#ifndef __bpf__ /* what follows is for applications */

#include <asm/socket.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

/* All return -1 and set errno on failure, unless they say otherwise. */

/* getsockopt of the level SOL_TRAITS, again as long as what it reads is just being changed. */
static inline int traits_getsockopt(int fd, int option, void *value, socklen_t *len)
{
	int tries = 100, err;

	do
		err = getsockopt(fd, SOL_TRAITS, option, value, len);
	while (err && errno == EAGAIN && --tries);
	return err;
}

/* Reads all keys. Returns how many there are. */
static inline int traits_keys(int fd, struct traits_key keys[TRAITS_KEY_MAX])
{
	socklen_t len = TRAITS_KEY_MAX * sizeof(*keys);

	if (!traits_getsockopt(fd, TRAITS_KEYS, keys, &len))
		return len / sizeof(*keys);
	if (errno == ENOENT)
		return 0;
	if (errno == EOPNOTSUPP) /* where it is served, this option has no such error */
		errno = ENOPROTOOPT;
	return -1;
}

/* Finds the key called `name`. Returns 0; ENOENT: there is none. */
static inline int traits_key_by_name(int fd, const char *name, struct traits_key *key)
{
	struct traits_key keys[TRAITS_KEY_MAX];
	int count = traits_keys(fd, keys), i;

	if (count < 0)
		return -1;
	for (i = 0; i < count; i++)
		if (!strncmp(keys[i].name, name, sizeof(keys[i].name))) {
			*key = keys[i];
			return 0;
		}
	errno = ENOENT;
	return -1;
}

/* Turns SAVE_SYN_TRAITS or RCV_TRAITS on or off. */
static inline int traits_switch(int fd, int option, int on)
{
	return setsockopt(fd, SOL_TRAITS, option, &on, sizeof(on));
}

/* Reads all traits at once: `option` is SYN_TRAITS, LAST_TRAITS or SOCKET_TRAITS. */
static inline int traits_get(int fd, int option, struct traits *traits)
{
	socklen_t len = sizeof(*traits);

	memset(traits, 0, sizeof(*traits));
	return traits_getsockopt(fd, option + TRAITS_ALL, traits, &len);
}

/*
 * Copies a key's value to `value`, which has room for `size` bytes. Returns the value's size, 0 for a flag that is set; -1 if
 * the key is not set (ENOENT) or the value is longer than `size` (ENOSPC).
 */
static inline int traits_value(const struct traits *traits, const struct traits_key *key, void *value, size_t size)
{
	if (!(traits->present >> (key->number & 63) & 1)) {
		errno = ENOENT;
		return -1;
	}
	if (key->size > size || key->size > TRAITS_VALUES_MAX || key->offset > TRAITS_VALUES_MAX - key->size) {
		errno = ENOSPC;
		return -1;
	}
	if (key->size)
		memcpy(value, traits->values + key->offset, key->size);
	return key->size;
}

/* Where traits_scatter puts the value of a key. */
struct traits_iovec {
	const struct traits_key *key;
	void *value;
	size_t len; /* in: bytes of room; out: bytes of the value, 0 if it is not set. A flag that is set is one byte, 1 */
};

/* Reads several keys with one system call. Returns how many of them are set; -1 if one has too little room: EINVAL. */
static inline int traits_scatter(int fd, int option, struct traits_iovec *vec, size_t count)
{
	struct traits traits;
	int set = 0, len;
	size_t i;

	for (i = 0; i < count; i++)
		if (!vec[i].len || vec[i].len < vec[i].key->size) {
			errno = EINVAL;
			return -1;
		}
	if (traits_get(fd, option, &traits))
		return -1;
	for (i = 0; i < count; i++) {
		len = traits_value(&traits, vec[i].key, vec[i].value, vec[i].len);
		set += len >= 0;
		if (len == 0)
			*(__u8 *)vec[i].value = len = 1;
		vec[i].len = len > 0 ? (size_t)len : 0;
	}
	return set;
}

/*
 * Puts a key's value into `traits`, which is zeroed before the first. Returns 0; EINVAL: `size` is not that of the key's values,
 * 0 for a flag.
 */
static inline int traits_put(struct traits *traits, const struct traits_key *key, const void *value, size_t size)
{
	if (size != key->size || size > TRAITS_VALUES_MAX || key->offset > TRAITS_VALUES_MAX - size) {
		errno = EINVAL;
		return -1;
	}
	if (size)
		memcpy(traits->values + key->offset, value, size);
	traits->present |= (__u64)1 << (key->number & 63);
	return 0;
}

/* Replaces the socket's own traits (SOCKET_TRAITS) or those of the next datagram (NEXT_TRAITS). */
static inline int traits_set(int fd, int option, const struct traits *traits)
{
	return setsockopt(fd, SOL_TRAITS, option + TRAITS_ALL, traits, sizeof(*traits));
}

/* The traits of a datagram that recvmsg has filled `msg` with. Without a handle in it, none: TRAITS_FOUND is not set. */
static inline int traits_of_msg(int fd, struct msghdr *msg, struct traits *traits)
{
	socklen_t len = sizeof(*traits);
	struct cmsghdr *cmsg;
	int handle;

	memset(traits, 0, sizeof(*traits));
	for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg))
		if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SO_MARK) {
			memcpy(&handle, CMSG_DATA(cmsg), sizeof(handle));
			return getsockopt(fd, SOL_TRAITS_DATAGRAM, handle, traits, &len);
		}
	return 0;
}

/* As recvfrom, with the datagram's traits. `from` may be NULL. The datagram is received even if its traits cannot be read. */
static inline ssize_t traits_recv(int fd, void *buf, size_t len, int flags, struct sockaddr_storage *from,
				  struct traits *traits)
{
	union {
		struct cmsghdr header;
		char bytes[256]; /* the mark comes after timestamps and drop counts */
	} control;
	struct iovec iov;
	struct msghdr msg;
	ssize_t received;

	memset(&msg, 0, sizeof(msg));
	iov.iov_base = buf;
	iov.iov_len = len;
	msg.msg_name = from;
	if (from)
		msg.msg_namelen = sizeof(*from);
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	msg.msg_control = &control;
	msg.msg_controllen = sizeof(control);
	received = recvmsg(fd, &msg, flags);
	if (received >= 0 && traits_of_msg(fd, &msg, traits))
		memset(traits, 0, sizeof(*traits));
	return received;
}

/* As sendto, with traits for this datagram alone. */
static inline ssize_t traits_send(int fd, const void *buf, size_t len, int flags, const struct sockaddr *to,
				  socklen_t to_len, const struct traits *traits)
{
	struct traits none;
	ssize_t sent;
	int err;

	if (traits_set(fd, NEXT_TRAITS, traits))
		return -1;
	sent = sendto(fd, buf, len, flags, to, to_len);
	/* what was sent may not have taken them either: MSG_PROBE, a netfilter queue */
	err = errno;
	memset(&none, 0, sizeof(none));
	traits_set(fd, NEXT_TRAITS, &none);
	errno = err;
	return sent;
}

#endif /* __bpf__ */
#endif /* PACKET_TRAITS_SOCKET_H */
