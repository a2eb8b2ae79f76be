// SPDX-License-Identifier: MIT OR Apache-2.0

// An echo server, UDP and TCP, that says which traits came with what it receives. Plain socket calls, no package but the
// standard library's.
//
//	go build examples/sockets/echo.go
//	traits sockets attach                 # once, as root
//	./echo --tenant 7 127.0.0.1 7777      # as anybody, started after that
//
// It prints a line for every datagram, for every connection (the traits of its SYN) and for all data on one:
//
//	udp 10.77.0.1:40000 tenant=7 flow_id=12
//	tcp 10.77.0.1:40002 syn tenant=2 flow_id=14
//	tcp 10.77.0.1:40002 data tenant=2 flow_id=15
//
// What it sends has traits as well, for the programs that see packets leave: the answer to a datagram has that
// datagram's flow_id, and with --tenant all of them have tenant.
//
// Numbers and structs are those of include/packet_traits/socket.h, which says more about each.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/netip"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const (
	solTraits         = 0x5452
	solTraitsDatagram = 0x5453
	traitsKeys        = 0x000
	saveSynTraits     = 0x100
	rcvTraits         = 0x200
	synTraits         = 0x300
	lastTraits        = 0x400
	socketTraits      = 0x500
	nextTraits        = 0x600
	traitsAll         = 0xff

	traitsKeyMax = 64
	keyLen       = 40  // struct traits_key
	traitsLen    = 248 // struct traits
	valuesAt     = 16  // traits.values
)

// Types of keys whose values are not unsigned integers.
const (
	typeI64  = 7
	typeIPv4 = 8
	typeIPv6 = 9
	typeMAC  = 10
	typeUUID = 11
)

// The host's byte order (binary.NativeEndian from Go 1.21 on).
var order binary.ByteOrder = binary.BigEndian

func init() {
	one := uint16(1)
	if *(*byte)(unsafe.Pointer(&one)) == 1 {
		order = binary.LittleEndian
	}
}

// getsockopt reads an option into value; it returns how many bytes it has.
func getsockopt(socket syscall.RawConn, level, option int, value []byte) (int, error) {
	length := uint32(len(value))
	var errno syscall.Errno
	err := socket.Control(func(fd uintptr) {
		// EAGAIN: a packet is just changing it
		for errno = syscall.EAGAIN; errno == syscall.EAGAIN; {
			_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(option),
				uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0)
		}
	})
	if err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, errno
	}
	return int(length), nil
}

func setsockopt(socket syscall.RawConn, option int, value []byte) error {
	var failed error
	err := socket.Control(func(fd uintptr) {
		failed = syscall.SetsockoptString(int(fd), solTraits, option, string(value))
	})
	if err != nil {
		return err
	}
	return failed
}

// turnOn turns switches on, such as saveSynTraits.
func turnOn(socket syscall.RawConn, switches ...int) error {
	one := make([]byte, 4)
	order.PutUint32(one, 1)
	for _, option := range switches {
		if err := setsockopt(socket, option, one); err != nil {
			return err
		}
	}
	return nil
}

// key is a registered key.
type key struct {
	name           string
	number         int
	kind           uint8
	offset, length int
}

func readKeys(socket syscall.RawConn) ([]key, error) {
	raw := make([]byte, traitsKeyMax*keyLen)
	length, err := getsockopt(socket, solTraits, traitsKeys, raw)
	if err != nil && !errors.Is(err, syscall.ENOENT) { // there are none
		return nil, err
	}
	var keys []key
	for raw = raw[:length]; len(raw) > 0; raw = raw[keyLen:] {
		keys = append(keys, key{
			name:   string(bytes.TrimRight(raw[:32], "\x00")),
			number: int(raw[32]),
			kind:   raw[33],
			length: int(raw[34]),
			offset: int(order.Uint16(raw[36:])),
		})
	}
	return keys, nil
}

func findKey(keys []key, name string) *key {
	for i := range keys {
		if keys[i].name == name {
			return &keys[i]
		}
	}
	return nil
}

// traits is a struct traits: what came with a packet.
type traits [traitsLen]byte

// get returns the value of a key, and whether it is set.
func (t *traits) get(k *key) ([]byte, bool) {
	set := order.Uint64(t[:])>>k.number&1 == 1
	return t[valuesAt+k.offset:][:k.length], set
}

func (t *traits) mark() uint32 {
	return order.Uint32(t[12:])
}

// isDetached says whether a call failed because of `traits sockets detach`: the server goes on without traits.
func isDetached(err error) bool {
	return errors.Is(err, syscall.ENOPROTOOPT) || errors.Is(err, syscall.EOPNOTSUPP)
}

// readTraits reads all traits that an option gives.
func readTraits(socket syscall.RawConn, level, option int) (t traits, err error) {
	if _, err = getsockopt(socket, level, option, t[:]); isDetached(err) {
		return traits{}, nil
	}
	return t, err
}

// traitsOfDatagram reads the traits of the datagram that came with these control messages.
func traitsOfDatagram(socket syscall.RawConn, control []byte) (t traits, err error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return t, err
	}
	for _, message := range messages {
		if message.Header.Level == syscall.SOL_SOCKET && message.Header.Type == syscall.SO_MARK {
			handle := order.Uint32(message.Data)
			t, err = readTraits(socket, solTraitsDatagram, int(handle))
		}
	}
	return t, err
}

// text returns a value as people write it.
func (k *key) text(value []byte) string {
	switch k.kind {
	case typeI64:
		return fmt.Sprint(int64(order.Uint64(value)))
	case typeIPv4, typeIPv6:
		address, _ := netip.AddrFromSlice(value)
		return address.String()
	case typeMAC:
		return net.HardwareAddr(value[:6]).String()
	case typeUUID:
		return fmt.Sprintf("%x-%x-%x-%x-%x", value[:4], value[4:6], value[6:8], value[8:10], value[10:])
	}
	digits := make([]byte, len(value)) // most significant first
	for i := range value {
		if order == binary.LittleEndian {
			digits[i] = value[len(value)-1-i]
		} else {
			digits[i] = value[i]
		}
	}
	return new(big.Int).SetBytes(digits).String()
}

// text returns `tenant=7 flow_id=12`; of a flag just the name.
func (t *traits) text(keys []key) string {
	var words []string
	for i := range keys {
		value, set := t.get(&keys[i])
		switch {
		case !set:
		case len(value) == 0:
			words = append(words, keys[i].name)
		default:
			words = append(words, keys[i].name+"="+keys[i].text(value))
		}
	}
	if t.mark() != 0 {
		words = append(words, fmt.Sprintf("mark=%d", t.mark()))
	}
	if words == nil {
		return "none"
	}
	return strings.Join(words, " ")
}

func serveUDP(socket *net.UDPConn, raw syscall.RawConn, keys []key) {
	// nextTraits is for the next datagram of this thread
	runtime.LockOSThread()
	flowID := findKey(keys, "flow_id")
	data, control := make([]byte, 65536), make([]byte, syscall.CmsgSpace(4))
	for {
		length, controlLength, _, peer, err := socket.ReadMsgUDP(data, control)
		if err != nil {
			log.Printf("cannot receive a datagram: %v", err)
			continue
		}
		t, err := traitsOfDatagram(raw, control[:controlLength])
		if err != nil {
			log.Printf("cannot read a datagram's traits: %v", err)
		}
		fmt.Println("udp", peer, t.text(keys))
		if flowID != nil {
			value, set := t.get(flowID)
			if !set {
				value = nil // then the answer has none either
			}
			if err := setsockopt(raw, nextTraits+flowID.number, value); err != nil && !isDetached(err) {
				log.Printf("cannot give an answer its flow_id: %v", err)
			}
		}
		if _, err := socket.WriteToUDP(data[:length], peer); err != nil {
			log.Printf("cannot answer a datagram: %v", err)
		}
	}
}

func serveConnection(connection *net.TCPConn, keys []key) error {
	defer connection.Close()
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	peer := connection.RemoteAddr()
	t, err := readTraits(raw, solTraits, synTraits+traitsAll)
	if err != nil {
		return err
	}
	fmt.Println("tcp", peer, "syn", t.text(keys))
	data := make([]byte, 65536)
	for {
		length, err := connection.Read(data)
		if err != nil {
			return nil // the end, or broken
		}
		if t, err = readTraits(raw, solTraits, lastTraits+traitsAll); err != nil {
			return err
		}
		fmt.Println("tcp", peer, "data", t.text(keys))
		if _, err := connection.Write(data[:length]); err != nil {
			return nil
		}
	}
}

func serveTCP(listener net.Listener, keys []key) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Printf("cannot accept a connection: %v", err)
			time.Sleep(time.Second) // if there are too many open files, later there may not be
			continue
		}
		go func() {
			if err := serveConnection(connection.(*net.TCPConn), keys); err != nil {
				log.Printf("cannot read a connection's traits: %v", err)
			}
		}()
	}
}

func run() error {
	tenant := flag.Uint("tenant", 0, "`tenant` of all datagrams it sends")
	flag.Parse()
	if flag.NArg() != 2 {
		return errors.New("usage: echo [--tenant N] ADDRESS PORT")
	}
	address := net.JoinHostPort(flag.Arg(0), flag.Arg(1))
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()

	udp := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return turnOn(raw, rcvTraits)
	}}
	packets, err := udp.ListenPacket(stop, "udp", address)
	if err != nil {
		return err
	}
	socket := packets.(*net.UDPConn)
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	keys, err := readKeys(raw)
	if err != nil {
		return fmt.Errorf("cannot read the keys: %w", err)
	}
	if k := findKey(keys, "tenant"); *tenant != 0 && k != nil && k.length == 4 {
		value := make([]byte, 4)
		order.PutUint32(value, uint32(*tenant))
		if err := setsockopt(raw, socketTraits+k.number, value); err != nil {
			return fmt.Errorf("cannot set the socket's tenant: %w", err)
		}
	}

	tcp := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		// accepted sockets inherit both
		return turnOn(raw, saveSynTraits, rcvTraits)
	}}
	// from Go 1.24 on a listener is one of MPTCP unless it is told not to be; only TCP sockets have traits
	if config, ok := any(&tcp).(interface{ SetMultipathTCP(bool) }); ok {
		config.SetMultipathTCP(false)
	}
	listener, err := tcp.Listen(stop, "tcp", address)
	if err != nil {
		return err
	}

	go serveUDP(socket, raw, keys)
	go serveTCP(listener, keys)
	<-stop.Done()
	return nil
}

func main() {
	log.SetFlags(0)
	err := run()
	if errors.Is(err, syscall.ENOPROTOOPT) {
		log.Fatal(`not attached: run "traits sockets attach" as root`)
	}
	if err != nil {
		log.Fatal(err)
	}
}
