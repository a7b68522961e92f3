#include "pkg/compress/decoder.h"

#include <lzma.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <new>
#include <string>

namespace bim::compress {
namespace {

using base::FailedPreconditionError;
using base::Status;

constexpr size_t kPiece = size_t{256} * 1024;
// Output that is aligned in memory can go past the page cache.
constexpr std::align_val_t kAlignment{4096};
// So many bytes tell the encodings apart.
constexpr size_t kHead = 6;
constexpr int kMaxZstdWindowLog = 27;
// A dictionary of 128 MiB, and what liblzma needs besides.
constexpr uint64_t kXzMemory = 160 << 20;

constexpr std::array<uint8_t, 3> kGzipMagic = {0x1f, 0x8b, 0x08};
constexpr std::array<uint8_t, 6> kXzMagic = {0xfd, '7', 'z', 'X', 'Z', 0};
constexpr std::array<uint8_t, 4> kZstdMagic = {0x28, 0xb5, 0x2f, 0xfd};

template <size_t size>
bool BeginsWith(std::span<const std::byte> data,
                const std::array<uint8_t, size>& magic) {
  return data.size() >= size &&
         std::memcmp(data.data(), magic.data(), size) == 0;
}

// 0x184D2A50 to 0x184D2A5F, little-endian.
bool IsZstdSkippable(std::span<const std::byte> data) {
  return data.size() >= 4 && (data[0] & std::byte{0xf0}) == std::byte{0x50} &&
         data[1] == std::byte{0x2a} && data[2] == std::byte{0x4d} &&
         data[3] == std::byte{0x18};
}

std::string Hex(std::span<const std::byte> data) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const std::byte byte : data) {
    if (!out.empty()) out += ' ';
    out += kDigits[std::to_integer<int>(byte >> 4)];
    out += kDigits[std::to_integer<int>(byte & std::byte{15})];
  }
  return out;
}

// "1f 8b 08" and so on.
std::string MagicText(Encoding encoding) {
  const auto hex = [](const auto& magic) {
    return Hex(std::as_bytes(std::span(magic)));
  };
  switch (encoding) {
    case Encoding::kGzip:
      return hex(kGzipMagic);
    case Encoding::kXz:
      return hex(kXzMagic);
    case Encoding::kZstd:
      return hex(kZstdMagic);
  }
  return "";
}

// What all have in common: the first bytes, the pieces, the bound.
class StreamDecoder : public Decoder {
 public:
  StreamDecoder(Encoding encoding, uint64_t max_output)
      : encoding_(encoding),
        max_output_(max_output),
        buffer_(static_cast<std::byte*>(::operator new(kPiece, kAlignment))) {}

  Status Feed(std::span<const std::byte> data, const Output& output) final {
    encoded_ += data.size();
    if (head_size_ < kHead) {
      const size_t take = std::min(kHead - head_size_, data.size());
      std::copy_n(data.begin(), take, head_.begin() + head_size_);
      head_size_ += take;
      data = data.subspan(take);
      if (head_size_ < kHead) return base::OkStatus();
      BIM_RETURN_IF_ERROR(CheckHead());
      BIM_RETURN_IF_ERROR(Decode(head_, output));
    }
    return Decode(data, output);
  }

  Status Finish(const Output& output) final {
    if (encoded_ == 0) {
      return FailedPreconditionError(
          "the " + Name() + " stream is empty: expected it to begin with " +
          MagicText(encoding_));
    }
    // None of the formats has a stream this short.
    if (head_size_ < kHead) return Truncated();
    for (bool done = false; !done;) {
      std::span<std::byte> room = Room();
      BIM_RETURN_IF_ERROR(End(room, done));
      BIM_RETURN_IF_ERROR(Keep(room, output));
    }
    return HandOn(output);
  }

  uint64_t encoded_bytes() const final { return encoded_; }
  uint64_t decoded_bytes() const final { return decoded_; }

 protected:
  // Decodes from the front of `in` into the front of `out` and takes off both
  // what was used, until one of them is empty. With `out` left over, nothing
  // that could still be put out without more input is held back.
  virtual Status Step(std::span<const std::byte>& in,
                      std::span<std::byte>& out) = 0;
  // No more input comes. Sets `done` when the stream is complete; otherwise
  // `out` was filled and it is called again.
  virtual Status End(std::span<std::byte>& out, bool& done) = 0;

  std::string Name() const { return std::string(EncodingName(encoding_)); }
  Status Truncated() const {
    return FailedPreconditionError("the " + Name() +
                                   " stream ends in the middle, after " +
                                   std::to_string(encoded_) + " bytes");
  }
  // `left`: input not looked at yet.
  Status Damaged(std::string_view why, size_t left) const {
    return FailedPreconditionError(
        "the " + Name() + " stream is damaged at or before byte " +
        std::to_string(encoded_ - left) + ": " + std::string(why));
  }
  Status TrailingBytes(std::span<const std::byte> found, size_t left) const {
    return FailedPreconditionError(
        "behind the end of the " + Name() + " stream, near byte " +
        std::to_string(encoded_ - left) + ", there are other bytes (" +
        Hex(found.first(std::min<size_t>(found.size(), 4))) + ")");
  }
  Status OutOfMemory() const {
    return FailedPreconditionError("there is no memory to decode the " +
                                   Name() + " stream");
  }

 private:
  struct Free {
    void operator()(std::byte* at) const { ::operator delete(at, kAlignment); }
  };

  Status CheckHead() const {
    const std::optional<Encoding> found = EncodingOfHead(head_);
    if (found == encoding_) return base::OkStatus();
    return FailedPreconditionError(
        "this is no " + Name() + " stream: expected it to begin with " +
        MagicText(encoding_) + ", found " + Hex(head_) +
        (found ? ", which is " + std::string(EncodingName(*found)) : ""));
  }

  Status Decode(std::span<const std::byte> data, const Output& output) {
    while (!data.empty() || more_) {
      std::span<std::byte> room = Room();
      BIM_RETURN_IF_ERROR(Step(data, room));
      // A full buffer may not be all that was ready.
      more_ = room.empty();
      BIM_RETURN_IF_ERROR(Keep(room, output));
    }
    return base::OkStatus();
  }

  std::span<std::byte> Room() const {
    return std::span(buffer_.get(), kPiece).subspan(filled_);
  }

  // Counts what was decoded into Room(), of which `room` is left.
  Status Keep(std::span<std::byte> room, const Output& output) {
    filled_ = kPiece - room.size();
    if (filled_ > max_output_ - decoded_) {
      filled_ = static_cast<size_t>(max_output_ - decoded_);
      BIM_RETURN_IF_ERROR(HandOn(output));
      return FailedPreconditionError(
          "the " + Name() + " stream decodes to more than the " +
          std::to_string(max_output_) + " bytes that are allowed");
    }
    return filled_ == kPiece ? HandOn(output) : base::OkStatus();
  }

  Status HandOn(const Output& output) {
    if (filled_ == 0) return base::OkStatus();
    const std::span<const std::byte> piece(buffer_.get(), filled_);
    decoded_ += filled_;
    filled_ = 0;
    return output(piece);
  }

  const Encoding encoding_;
  const uint64_t max_output_;
  uint64_t encoded_ = 0;
  uint64_t decoded_ = 0;
  std::array<std::byte, kHead> head_{};
  size_t head_size_ = 0;
  std::unique_ptr<std::byte, Free> buffer_;
  size_t filled_ = 0;  // of buffer_
  bool more_ = false;
};

class GzipDecoder final : public StreamDecoder {
 public:
  explicit GzipDecoder(uint64_t max_output)
      : StreamDecoder(Encoding::kGzip, max_output) {
    // 16: a gzip header, no zlib one.
    ready_ = ::inflateInit2(&stream_, MAX_WBITS + 16) == Z_OK;
  }
  ~GzipDecoder() override {
    if (ready_) ::inflateEnd(&stream_);
  }

 protected:
  Status Step(std::span<const std::byte>& in,
              std::span<std::byte>& out) override {
    if (!ready_) return OutOfMemory();
    while (!out.empty()) {
      if (state_ == State::kBehindMember && !in.empty()) {
        if (in[0] == std::byte{0}) {
          state_ = State::kPadding;
        } else if (in[0] == std::byte{kGzipMagic[0]}) {
          ::inflateReset(&stream_);
          state_ = State::kMember;
        } else {
          return TrailingBytes(in, in.size());
        }
      }
      if (state_ == State::kPadding) {
        const auto other = std::find_if(in.begin(), in.end(), [](std::byte b) {
          return b != std::byte{0};
        });
        in = in.subspan(static_cast<size_t>(other - in.begin()));
        if (!in.empty()) return TrailingBytes(in, in.size());
      }
      if (state_ != State::kMember) return base::OkStatus();

      BIM_RETURN_IF_ERROR(Inflate(in, out));
      if (state_ == State::kMember && in.empty()) return base::OkStatus();
    }
    return base::OkStatus();
  }

  Status End(std::span<std::byte>&, bool& done) override {
    if (state_ == State::kMember) return Truncated();
    done = true;
    return base::OkStatus();
  }

 private:
  enum class State { kMember, kBehindMember, kPadding };

  Status Inflate(std::span<const std::byte>& in, std::span<std::byte>& out) {
    constexpr size_t kMax = std::numeric_limits<uInt>::max();
    stream_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(
        in.data()));  // zlib does not write there
    stream_.avail_in = static_cast<uInt>(std::min(in.size(), kMax));
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = static_cast<uInt>(out.size());
    const uInt had = stream_.avail_in;
    const int result = ::inflate(&stream_, Z_NO_FLUSH);
    in = in.subspan(had - stream_.avail_in);
    out = out.last(stream_.avail_out);
    switch (result) {
      case Z_OK:
      case Z_BUF_ERROR:  // nothing to do without more input
        return base::OkStatus();
      case Z_STREAM_END:
        state_ = State::kBehindMember;
        return base::OkStatus();
      case Z_MEM_ERROR:
        return OutOfMemory();
      default:
        return Damaged(stream_.msg != nullptr ? stream_.msg : "not decodable",
                       in.size());
    }
  }

  z_stream stream_{};
  bool ready_ = false;
  State state_ = State::kMember;
};

class XzDecoder final : public StreamDecoder {
 public:
  explicit XzDecoder(uint64_t max_output)
      : StreamDecoder(Encoding::kXz, max_output) {
    // CONCATENATED also takes the padding between and behind streams: zeros,
    // a multiple of four.
    ready_ = ::lzma_stream_decoder(
                 &stream_, kXzMemory,
                 LZMA_CONCATENATED | LZMA_TELL_UNSUPPORTED_CHECK) == LZMA_OK;
  }
  ~XzDecoder() override { ::lzma_end(&stream_); }

 protected:
  Status Step(std::span<const std::byte>& in,
              std::span<std::byte>& out) override {
    if (!ready_) return OutOfMemory();
    bool ended = false;
    do {
      BIM_RETURN_IF_ERROR(Code(LZMA_RUN, in, out, ended));
    } while (!in.empty() && !out.empty());
    return base::OkStatus();
  }

  Status End(std::span<std::byte>& out, bool& done) override {
    std::span<const std::byte> none;
    while (!done && !out.empty()) {
      BIM_RETURN_IF_ERROR(Code(LZMA_FINISH, none, out, done));
    }
    return base::OkStatus();
  }

 private:
  Status Code(lzma_action action, std::span<const std::byte>& in,
              std::span<std::byte>& out, bool& ended) {
    stream_.next_in = reinterpret_cast<const uint8_t*>(in.data());
    stream_.avail_in = in.size();
    stream_.next_out = reinterpret_cast<uint8_t*>(out.data());
    stream_.avail_out = out.size();
    const lzma_ret result = ::lzma_code(&stream_, action);
    in = in.last(stream_.avail_in);
    out = out.last(stream_.avail_out);
    switch (result) {
      case LZMA_OK:
        return base::OkStatus();
      case LZMA_STREAM_END:
        ended = true;
        return base::OkStatus();
      case LZMA_BUF_ERROR:  // no progress without more input
        if (action == LZMA_FINISH) return Truncated();
        return in.empty() ? base::OkStatus()
                          : Damaged("it cannot be decoded further", in.size());
      case LZMA_MEM_ERROR:
        return OutOfMemory();
      case LZMA_MEMLIMIT_ERROR:
        return FailedPreconditionError(
            "the xz stream needs " +
            std::to_string((::lzma_memusage(&stream_) >> 20) + 1) +
            " MiB of memory to decode, at most " +
            std::to_string(kXzMemory >> 20) +
            " MiB are allowed: compress it with a smaller dictionary (xz -9 "
            "or less)");
      case LZMA_UNSUPPORTED_CHECK:
        return FailedPreconditionError(
            "the xz stream has an integrity check of an unknown kind (" +
            std::to_string(static_cast<int>(::lzma_get_check(&stream_))) + ")");
      case LZMA_OPTIONS_ERROR:
        return FailedPreconditionError(
            "the xz stream uses options that are not supported here, or its "
            "header is damaged");
      case LZMA_FORMAT_ERROR:
        return Damaged("expected the header of an xz stream", in.size());
      default:
        return Damaged(
            "its data or a checksum is wrong, or other bytes "
            "follow its end",
            in.size());
    }
  }

  lzma_stream stream_ = LZMA_STREAM_INIT;
  bool ready_ = false;
};

class ZstdDecoder final : public StreamDecoder {
 public:
  explicit ZstdDecoder(uint64_t max_output)
      : StreamDecoder(Encoding::kZstd, max_output),
        context_(::ZSTD_createDCtx()) {
    if (context_ != nullptr &&
        ::ZSTD_isError(::ZSTD_DCtx_setParameter(
            context_.get(), ZSTD_d_windowLogMax, kMaxZstdWindowLog))) {
      context_.reset();
    }
  }

 protected:
  Status Step(std::span<const std::byte>& in,
              std::span<std::byte>& out) override {
    if (context_ == nullptr) return OutOfMemory();
    while (!out.empty()) {
      if (!in_frame_) {
        if (in.empty()) return base::OkStatus();
        BIM_RETURN_IF_ERROR(BeginFrame(in, out));
        continue;
      }
      BIM_RETURN_IF_ERROR(Decompress(in, out));
      if (in_frame_ && in.empty()) return base::OkStatus();
    }
    return base::OkStatus();
  }

  Status End(std::span<std::byte>&, bool& done) override {
    if (in_frame_ || magic_size_ > 0) return Truncated();
    done = true;
    return base::OkStatus();
  }

 private:
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ::ZSTD_freeDCtx(context); }
  };

  // Looks at each frame's magic first: libzstd would also read the formats
  // from before 2016, by code that nobody looks after.
  Status BeginFrame(std::span<const std::byte>& in, std::span<std::byte>& out) {
    const size_t take = std::min(magic_.size() - magic_size_, in.size());
    std::copy_n(in.begin(), take, magic_.begin() + magic_size_);
    magic_size_ += take;
    in = in.subspan(take);
    if (magic_size_ < magic_.size()) return base::OkStatus();
    if (!BeginsWith<4>(magic_, kZstdMagic) && !IsZstdSkippable(magic_)) {
      return TrailingBytes(magic_, in.size() + magic_.size());
    }
    magic_size_ = 0;
    in_frame_ = true;
    std::span<const std::byte> magic = magic_;
    return Decompress(magic, out);
  }

  Status Decompress(std::span<const std::byte>& in, std::span<std::byte>& out) {
    ZSTD_inBuffer from{in.data(), in.size(), 0};
    ZSTD_outBuffer to{out.data(), out.size(), 0};
    const size_t result = ::ZSTD_decompressStream(context_.get(), &to, &from);
    in = in.subspan(from.pos);
    out = out.subspan(to.pos);
    if (result == 0) in_frame_ = false;
    if (!::ZSTD_isError(result)) return base::OkStatus();
    switch (::ZSTD_getErrorCode(result)) {
      case ZSTD_error_frameParameter_windowTooLarge:
        return FailedPreconditionError(
            "the zstd stream needs more memory to decode than the window of "
            "128 MiB that is allowed: compress it with at most --long=27");
      case ZSTD_error_memory_allocation:
        return OutOfMemory();
      default:
        return Damaged(::ZSTD_getErrorName(result), in.size());
    }
  }

  std::unique_ptr<ZSTD_DCtx, Free> context_;
  bool in_frame_ = false;
  std::array<std::byte, 4> magic_{};  // of the next frame
  size_t magic_size_ = 0;
};

}  // namespace

std::string_view EncodingName(Encoding encoding) {
  switch (encoding) {
    case Encoding::kGzip:
      return "gzip";
    case Encoding::kXz:
      return "xz";
    case Encoding::kZstd:
      return "zstd";
  }
  return "";
}

std::optional<Encoding> EncodingOfHead(std::span<const std::byte> head) {
  if (head.size() < kHead) return std::nullopt;
  if (BeginsWith(head, kGzipMagic)) return Encoding::kGzip;
  if (BeginsWith(head, kXzMagic)) return Encoding::kXz;
  if (BeginsWith(head, kZstdMagic) || IsZstdSkippable(head)) {
    return Encoding::kZstd;
  }
  return std::nullopt;
}

std::optional<Encoding> EncodingOfName(std::string_view name) {
  std::string lower(name);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  if (lower == "gzip" || lower == "x-gzip") return Encoding::kGzip;
  if (lower == "xz") return Encoding::kXz;
  if (lower == "zstd") return Encoding::kZstd;
  return std::nullopt;
}

std::unique_ptr<Decoder> MakeDecoder(Encoding encoding, uint64_t max_output) {
  switch (encoding) {
    case Encoding::kGzip:
      return std::make_unique<GzipDecoder>(max_output);
    case Encoding::kXz:
      return std::make_unique<XzDecoder>(max_output);
    case Encoding::kZstd:
      return std::make_unique<ZstdDecoder>(max_output);
  }
  return nullptr;
}

}  // namespace bim::compress
