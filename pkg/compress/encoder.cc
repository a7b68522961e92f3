#include "pkg/compress/encoder.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>

namespace bim::compress {
namespace {

using base::Status;

constexpr int kMinLevel = 1;
constexpr int kMaxLevel = 19;

struct Free {
  void operator()(ZSTD_CCtx* context) const { ::ZSTD_freeCCtx(context); }
};

class ZstdFrame final : public Encoder {
 public:
  explicit ZstdFrame(int level)
      : context_(::ZSTD_createCCtx()), buffer_(::ZSTD_CStreamOutSize(), '\0') {
    if (context_ == nullptr) return;
    const auto set = [&](ZSTD_cParameter parameter, int value) {
      return !::ZSTD_isError(
          ::ZSTD_CCtx_setParameter(context_.get(), parameter, value));
    };
    ready_ =
        set(ZSTD_c_compressionLevel, std::clamp(level, kMinLevel, kMaxLevel)) &&
        set(ZSTD_c_checksumFlag, 1);
  }

  Status Feed(std::span<const std::byte> data, std::string& out) override {
    ZSTD_inBuffer from{data.data(), data.size(), 0};
    while (from.pos < from.size) {
      size_t left = 0;
      BIM_RETURN_IF_ERROR(Step(from, ZSTD_e_continue, out, left));
    }
    return base::OkStatus();
  }

  Status Finish(std::string& out) override {
    ZSTD_inBuffer none{nullptr, 0, 0};
    size_t left = 1;
    while (left > 0) {
      BIM_RETURN_IF_ERROR(Step(none, ZSTD_e_end, out, left));
    }
    return base::OkStatus();
  }

 private:
  // `left`: 0 when all that `how` asks for is in `out`.
  Status Step(ZSTD_inBuffer& from, ZSTD_EndDirective how, std::string& out,
              size_t& left) {
    if (!ready_) {
      return base::ResourceExhaustedError("there is no memory to compress");
    }
    ZSTD_outBuffer to{buffer_.data(), buffer_.size(), 0};
    left = ::ZSTD_compressStream2(context_.get(), &to, &from, how);
    if (::ZSTD_isError(left)) {
      return base::InternalError(std::string("cannot compress: ") +
                                 ::ZSTD_getErrorName(left));
    }
    out.append(buffer_.data(), to.pos);
    return base::OkStatus();
  }

  std::unique_ptr<ZSTD_CCtx, Free> context_;
  std::string buffer_;
  bool ready_ = false;
};

class GzipMember final : public Encoder {
 public:
  explicit GzipMember(int level) : buffer_(kGzipBuffer, '\0') {
    // 16: a gzip head and tail instead of zlib's.
    ready_ = ::deflateInit2(&stream_, std::clamp(level, 1, 9), Z_DEFLATED,
                            MAX_WBITS + 16, MAX_MEM_LEVEL,
                            Z_DEFAULT_STRATEGY) == Z_OK;
  }
  ~GzipMember() override {
    if (ready_) (void)::deflateEnd(&stream_);
  }
  GzipMember(const GzipMember&) = delete;
  GzipMember& operator=(const GzipMember&) = delete;

  Status Feed(std::span<const std::byte> data, std::string& out) override {
    while (!data.empty()) {
      const auto piece = data.first(std::min(data.size(), kGzipBuffer));
      data = data.subspan(piece.size());
      // zlib does not write there.
      stream_.next_in =
          reinterpret_cast<Bytef*>(const_cast<std::byte*>(piece.data()));
      stream_.avail_in = static_cast<uInt>(piece.size());
      BIM_RETURN_IF_ERROR(Run(Z_NO_FLUSH, out));
    }
    return base::OkStatus();
  }

  Status Finish(std::string& out) override {
    stream_.next_in = nullptr;
    stream_.avail_in = 0;
    return Run(Z_FINISH, out);
  }

 private:
  static constexpr size_t kGzipBuffer = 128 << 10;

  Status Run(int flush, std::string& out) {
    if (!ready_) {
      return base::ResourceExhaustedError("there is no memory to compress");
    }
    // As long as it fills the buffer there is more.
    do {
      stream_.next_out = reinterpret_cast<Bytef*>(buffer_.data());
      stream_.avail_out = static_cast<uInt>(buffer_.size());
      const int result = ::deflate(&stream_, flush);
      if (result == Z_STREAM_ERROR) {
        return base::InternalError("cannot compress");
      }
      out.append(buffer_.data(), buffer_.size() - stream_.avail_out);
    } while (stream_.avail_out == 0);
    return base::OkStatus();
  }

  z_stream stream_ = {};
  std::string buffer_;
  bool ready_ = false;
};

}  // namespace

std::string CompressZstd(std::span<const std::byte> data, int level) {
  if (data.size() < 2) return "";
  // No room for a result that is not smaller: libzstd then stops early.
  const size_t room = data.size() - 1;
  const auto buffer = std::make_unique_for_overwrite<char[]>(room);
  const size_t size =
      ::ZSTD_compress(buffer.get(), room, data.data(), data.size(),
                      std::clamp(level, kMinLevel, kMaxLevel));
  if (::ZSTD_isError(size)) return "";
  return std::string(buffer.get(), size);
}

std::unique_ptr<Encoder> MakeZstdEncoder(int level) {
  return std::make_unique<ZstdFrame>(level);
}

std::unique_ptr<Encoder> MakeGzipEncoder(int level) {
  return std::make_unique<GzipMember>(level);
}

}  // namespace bim::compress
