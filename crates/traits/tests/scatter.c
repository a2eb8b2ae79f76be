/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Reads traits of the SYN of the connection that is its standard input, with one call of traits_scatter.
 * Usage: scatter KEY=ROOM...
 * Prints how many keys are set, and of each its length and value in hexadecimal; or why it failed.
 */
#include <packet_traits/socket.h>
#include <stdio.h>
#include <stdlib.h>

#define KEYS_MAX 16
#define UNTOUCHED 0xa5

int main(int argc, char **argv)
{
	unsigned char values[KEYS_MAX][64];
	struct traits_iovec vec[KEYS_MAX];
	struct traits_key keys[KEYS_MAX];
	int count = argc - 1, set, i;
	size_t room[KEYS_MAX], j;

	memset(values, UNTOUCHED, sizeof(values));
	for (i = 0; i < count && i < KEYS_MAX; i++) {
		room[i] = atoi(strchr(argv[i + 1], '=') + 1);
		*strchr(argv[i + 1], '=') = '\0';
		if (traits_key_by_name(0, argv[i + 1], &keys[i])) {
			printf("no key %s: %s\n", argv[i + 1], strerror(errno));
			return 0;
		}
		vec[i].key = &keys[i];
		vec[i].value = values[i];
		vec[i].len = room[i];
	}
	set = traits_scatter(0, SYN_TRAITS, vec, count);
	if (set < 0)
		printf("failed: %s\n", strerror(errno));
	else
		printf("%d set\n", set);
	for (i = 0; i < count; i++) {
		if (set >= 0) {
			printf("%s %zu ", argv[i + 1], vec[i].len);
			for (j = 0; j < vec[i].len; j++)
				printf("%02x", values[i][j]);
			printf("\n");
		}
		for (j = set < 0 ? 0 : vec[i].len; j < sizeof(values[i]); j++)
			if (values[i][j] != UNTOUCHED)
				printf("%s: byte %zu was written\n", argv[i + 1], j);
	}
	return 0;
}
