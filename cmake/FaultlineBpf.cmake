# The BPF programs: compiled for the machine that is built for, linked into one object, and made a header that holds it (a skeleton).
find_program(BPF_CLANG NAMES clang-14 clang REQUIRED DOC "clang that compiles BPF programs")
# Debian has it in /usr/sbin, which is not on everybody's PATH.
find_program(BPFTOOL NAMES bpftool PATHS /usr/sbin /sbin REQUIRED)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(BPF_ARCH x86_64)
  set(BPF_TARGET_ARCH x86)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(BPF_ARCH aarch64)
  set(BPF_TARGET_ARCH arm64)
else()
  message(FATAL_ERROR "BPF programs: there are kernel types for x86_64 and aarch64 (vmlinux/), not for ${CMAKE_SYSTEM_PROCESSOR}")
endif()

# bpf_object(SOURCE ARCH TARGET_ARCH OUTPUT): one program file.
function(bpf_object source arch target_arch output)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${output})
  add_custom_command(OUTPUT ${object}
    COMMAND ${BPF_CLANG} -target bpf -mcpu=v3 -O2 -g -D__TARGET_ARCH_${target_arch} -Wall -Werror -Wno-unused-parameter
      -I ${PROJECT_SOURCE_DIR}/vmlinux/${arch} -I ${PROJECT_SOURCE_DIR}/bpf -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source} DEPFILE ${object}.d VERBATIM COMMENT "Building BPF object ${output}")
endfunction()

# faultline_bpf(TARGET NAME): bpf/*.bpf.c as the skeleton NAME.skel.h, in an interface library.
function(faultline_bpf target name)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/bpf/*.bpf.c)
  file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/bpf ${CMAKE_CURRENT_BINARY_DIR}/bpf-other)
  set(objects)
  set(others)
  foreach(source ${sources})
    get_filename_component(file ${source} NAME_WE)
    bpf_object(${source} ${BPF_ARCH} ${BPF_TARGET_ARCH} bpf/${file}.bpf.o)
    list(APPEND objects ${CMAKE_CURRENT_BINARY_DIR}/bpf/${file}.bpf.o)
    # The other machine's too, as far as compiling, so that it doesn't rot.
    if(BPF_ARCH STREQUAL "x86_64")
      bpf_object(${source} aarch64 arm64 bpf-other/${file}.bpf.o)
    else()
      bpf_object(${source} x86_64 x86 bpf-other/${file}.bpf.o)
    endif()
    list(APPEND others ${CMAKE_CURRENT_BINARY_DIR}/bpf-other/${file}.bpf.o)
  endforeach()
  set(linked ${CMAKE_CURRENT_BINARY_DIR}/bpf/${name}.o)
  set(header ${CMAKE_CURRENT_BINARY_DIR}/bpf/${name}.skel.h)
  # gen object also drops DWARF, which is most of what the compiler wrote.
  add_custom_command(OUTPUT ${header}
    COMMAND ${BPFTOOL} gen object ${linked} ${objects}
    COMMAND ${BPFTOOL} gen skeleton ${linked} name ${name} > ${header}.tmp
    COMMAND ${CMAKE_COMMAND} -E rename ${header}.tmp ${header}
    DEPENDS ${objects} VERBATIM COMMENT "Building BPF skeleton ${name}.skel.h")
  add_custom_target(${target}-made DEPENDS ${header})
  add_custom_target(${target}-other ALL DEPENDS ${others})
  add_library(${target} INTERFACE)
  add_dependencies(${target} ${target}-made)
  target_include_directories(${target} SYSTEM INTERFACE ${CMAKE_CURRENT_BINARY_DIR}/bpf)
  # For "bpf/event.h"; <bpf/...> stays libbpf's.
  target_compile_options(${target} INTERFACE "SHELL:-iquote ${PROJECT_SOURCE_DIR}")
endfunction()
