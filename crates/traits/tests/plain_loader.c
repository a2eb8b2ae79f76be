// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * A loader that knows nothing of packet traits: the system's libbpf, as other projects use it. Loads an object, attaches
 * one of its XDP programs, and keeps it until its standard input ends.
 *
 *	plain_loader OBJECT PROGRAM IFINDEX [ANCHORS]
 *
 * ANCHORS is the pin of a registry's map `anchors`, to share what headrooms were seen. Prints `ready`, and the id of the
 * map `pt_anchors` that the programs use. Compiled and run by binding.rs.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	struct bpf_map_info info = {};
	__u32 len = sizeof(info);
	struct bpf_object *object;
	struct bpf_program *program;
	struct bpf_map *anchors;
	char end;

	if (argc < 4) {
		fprintf(stderr, "usage: plain_loader OBJECT PROGRAM IFINDEX [ANCHORS]\n");
		return 2;
	}
	object = bpf_object__open_file(argv[1], NULL);
	if (!object)
		return fail("open");
	/* only that one: an old libbpf does not know the types of all others */
	bpf_object__for_each_program(program, object)
		bpf_program__set_autoload(program, !strcmp(bpf_program__name(program), argv[2]));
	program = bpf_object__find_program_by_name(object, argv[2]);
	anchors = bpf_object__find_map_by_name(object, "pt_anchors");
	if (argc > 4 && bpf_map__reuse_fd(anchors, bpf_obj_get(argv[4])))
		return fail("reuse");
	if (bpf_object__load(object))
		return fail("load");
	if (!program || !bpf_program__attach_xdp(program, atoi(argv[3])))
		return fail("attach");
	if (bpf_obj_get_info_by_fd(bpf_map__fd(anchors), &info, &len))
		return fail("info");
	printf("ready %u\n", info.id);
	fflush(stdout);
	while (read(0, &end, 1) > 0)
		;
	return 0;
}
