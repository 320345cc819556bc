#!/usr/bin/env bash
# The whole chain on a simulated cohort: the README's numbered commands with small configs.
# Everything goes to demo/. Run again, it continues where it was stopped and repeats nothing.
set -euo pipefail
cd "$(dirname "$0")"
SECONDS=0
step() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }
VAE=demo/checkpoints/betavae/model_dict_best.pt
MODELS=demo/checkpoints
LUNG=SIM-0002-0625.svs   # the two exemplar patients
BRAIN=SIM-0002-3025.svs

step "0.1 A cohort with known truth: slides and matched expression"
python3 simulate_cohort.py --output demo/cohort --seed 99

step "0.2 Expression tables"
for tissue in lung brain; do
  python3 prepare_expression.py --input demo/cohort/expression/${tissue}_counts.csv.gz --tissue $tissue \
    --slides demo/cohort/slides/$tissue --output demo/expression/$tissue.csv
  python3 prepare_expression.py --input demo/cohort/external_${tissue}_counts.csv.gz --unit counts \
    --tissue $tissue --output demo/external/$tissue.csv
done

step "0.3 Tiles: 64 px at 1 um per pixel"
for tissue in lung brain; do
  python3 extract_tiles.py --slide_path demo/cohort/slides/$tissue --patch_path demo/tiles/$tissue \
    --tile_px 64 --mpp 1.0
done

step "1.1 betaVAE: training"
python3 betaVAE_training.py --seed 99 --config configs/demo/betavae_tissues.json --log 1 --parallel 0
step "1.2 betaVAE: interpolation between tissues and between sexes"
python3 betaVAE_interpolation.py --seed 99 --config configs/demo/betavae_tissues.json --log 0 --parallel 0
python3 betaVAE_interpolation.py --seed 99 --config configs/demo/betavae_tissues.json --type sex --annotations demo/cohort/annotations.tsv
step "1.3 betaVAE: samples, and lung shifted to brain and back"
python3 betaVAE_sample.py --seed 99 --config configs/demo/betavae_tissues.json --log 0 --parallel 0
python3 betaVAE_sample.py --seed 99 --config configs/demo/betavae_tissues.json --num_samples 100 \
  --interpolation demo/checkpoints/betavae/interpolation_tissue.npz

# Two minutes per pair of models: the relativistic loss learns fastest; the published ones are wgan and
# wganvae. Small networks gain little from a second core, so brain is trained beside lung, its messages
# in a file.
mkdir -p demo/logs
export OMP_NUM_THREADS=1
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
finish() { wait $! || { tail -n 1 "$1" >&2; exit 1; }; }
step "2.1 GAN: tiles from noise"
python3 histopathology_gan.py --seed 99 --config configs/demo/gan_run_brain.json --image_dir demo/images/gan_brain --model_dir $MODELS/gan_brain --num_epochs 3 --gan_type dcgan --loss_type relativistic --num_patches 600 > demo/logs/gan_brain.log 2>&1 &
python3 histopathology_gan.py --seed 99 --config configs/demo/gan_run_lung.json --image_dir demo/images/gan_lung --model_dir $MODELS/gan_lung --num_epochs 5 --gan_type dcgan --loss_type relativistic --num_patches 600
finish demo/logs/gan_brain.log
step "2.2 RNA-GAN: tiles from the patient's expression"
python3 histopathology_gan.py --seed 99 --config configs/demo/gan_run_brain.json --image_dir demo/images/rna-gan_brain --model_dir $MODELS/rna-gan_brain --num_epochs 4 --gan_type dcgan --loss_type relativisticvae --num_patches 600 > demo/logs/rna-gan_brain.log 2>&1 &
python3 histopathology_gan.py --seed 99 --config configs/demo/gan_run_lung.json --image_dir demo/images/rna-gan_lung --model_dir $MODELS/rna-gan_lung --num_epochs 6 --gan_type dcgan --loss_type relativisticvae --num_patches 600
finish demo/logs/rna-gan_brain.log
step "2.3 Does the profile reach the tile? Morphology of tiles against the truth"
measure() {
  python3 measure_conditioning.py --checkpoint $MODELS/rna-gan_$1.model --config configs/demo/gan_run_$1.json \
    --truth demo/cohort/truth.csv --programs demo/cohort/programs.csv --mpp 1.0 --output demo/conditioning/$1.json
}
measure brain > demo/logs/conditioning_brain.log 2>&1 &
measure lung
finish demo/logs/conditioning_brain.log
unset OMP_NUM_THREADS

step "3 FID of the fifteen pairs, and one of them spelled out, with copies of training tiles looked for"
L="--config configs/demo/gan_run_lung.json" B="--config configs/demo/gan_run_brain.json"
V="--vae --vae_checkpoint $VAE"
python3 fid.py --table configs/demo/fid_table.json --sample_size 16 --draws 3 --cache demo/features --output demo/fid
python3 fid.py --checkpoint $MODELS/rna-gan_lung.model --config configs/demo/gan_run_lung.json $V --patient1 $LUNG \
  --sample_size 16 --draws 3 --copying 32 --cache demo/features --output demo/copying/rna-gan_lung.json

step "4.1 Tiles of a patient: real, RNA-GAN and GAN side by side"
python3 generate_tissue_images.py --checkpoint $MODELS/rna-gan_lung.model --checkpoint2 $MODELS/gan_lung.model $L --sample_size 64 $V --patient1 $LUNG --save_path demo/generated/patient_lung
python3 generate_tissue_images.py --checkpoint $MODELS/rna-gan_brain.model --checkpoint2 $MODELS/gan_brain.model $B --sample_size 64 $V --patient1 $BRAIN --save_path demo/generated/patient_brain
step "4.2 Tiles of a profile from outside the cohort"
python3 generate_tissue_images.py --checkpoint $MODELS/rna-gan_lung.model $L --sample_size 64 $V --rna_data demo/external/lung.csv --random_patient --save_path demo/generated/external_lung
python3 generate_tissue_images.py --checkpoint $MODELS/rna-gan_brain.model $B --sample_size 64 $V --rna_data demo/external/brain.csv --random_patient --save_path demo/generated/external_brain
step "4.3 What if: the genes of nuclear density moved by -2 to +2 standard deviations, the noise kept"
python3 generate_tissue_images.py --checkpoint $MODELS/rna-gan_lung.model $L --seeds 0-7 $V --patient1 $LUNG --program demo/cohort/programs.csv --program_name nuclear_density --dose -2..2 --steps 5 --save_path demo/generated/dose_lung
step "4.4 Tiles of many patients, for the classifier and the feature map"
many() {
  OMP_NUM_THREADS=1 python3 generate_tissue_images.py --checkpoint $MODELS/rna-gan_$1.model --checkpoint2 $MODELS/gan_$1.model \
    --config configs/demo/gan_run_$1.json --sample_size 72 $V --all_patients --num_patients 24 --features inception --save_path demo/generated/all_$1
}
many brain > demo/logs/generated_brain.log 2>&1 &
many lung
finish demo/logs/generated_brain.log

step "5 Toy classifier: lung or brain, trained on real tiles, generated ones or both, tested on real ones"
real="demo/generated/all_lung/tiles_real.csv demo/generated/all_brain/tiles_real.csv"
generated="demo/generated/all_lung/tiles_rna-gan.csv demo/generated/all_brain/tiles_rna-gan.csv"
# UMAP is compiled at its first call, which takes longer than the figure: on the other core meanwhile.
OMP_NUM_THREADS=1 python3 figures.py --results demo --output demo/report --figure feature_map > demo/logs/feature_map.log 2>&1 &
OMP_NUM_THREADS=1 python3 wsi_model.py --patch_data_path demo/generated --csv_path $real --generated_csv $generated --network small --num_epochs 4 --output demo/classifier/rna-gan
finish demo/logs/feature_map.log

step "6 Figures and the report"
python3 figures.py --results demo --output demo/report --all
printf '\nDone in %d s. Everything is in %s; open %s\n' "$SECONDS" "$PWD/demo" "$PWD/demo/report/index.html"
printf '\nReal or generated? The quiz on these tiles:\n  %s\n' "$PWD/.venv/bin/python web_quiz.py --real demo/tiles --generated demo/generated/patient_lung demo/generated/patient_brain --store demo/quiz/quiz.sqlite"
